"""``load_personality``: puts an adapter's tables into a running model, switches them, and takes them out again."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import nn

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.find import find_adapter
from npti_export.errors import NptiError
from npti_export.steering.dial import InForce, Schedule, Strength
from npti_export.steering.installation import Installation
from npti_export.steering.module import check_unsteered
from npti_export.steering.output import find_outputs
from npti_export.steering.sites import base_model_id, describe_base_model, find_sites
from npti_export.steering.slots import Slots
from npti_export.steering.thinking import Thinking
from npti_export.traits import NEUTRAL, PersonalitySpec

logger = logging.getLogger("npti_export")

SLOTS = 16
"""Rows of the tables unless the caller says otherwise: fifteen personalities at a time beside neutral."""

SpecLike = str | Mapping[str, float] | PersonalitySpec | None


def load_personality(
    model: nn.Module,
    spec: SpecLike | Sequence[SpecLike],
    adapter: str | os.PathLike[str] | PersonalityAdapter | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    positions: str | None = None,
    slots: int = SLOTS,
    thinking: Thinking | None = None,
) -> Personality:
    """Gives a running model a personality; its parameters are not touched.

    Args:
        model: A transformers model with ``generate``.
        spec: Such as ``openness+``, ``extraversion+,neuroticism-1.2``, ``{"openness": 0.5}`` or ``neutral``; or a list
            of these, one a row of the batch.
        adapter: A folder, a Hub repository, or an adapter in memory; None looks for the one made for this base model.
        revision: Branch, tag or commit of a Hub repository.
        token: Hub token; None takes the one that is logged in.
        positions: Which tokens are steered, over the adapter's own choice: ``generated``, ``answer``,
            ``last_prompt+generated`` or ``all``.
        slots: How many personalities the tables hold at a time, neutral included.
        thinking: The marks of a reasoning model's thinking, which positions ``answer`` leaves alone:
            ``Thinking.of(tokenizer)``, or ``Thinking.between`` where its chat template does not show them.

    Returns:
        The personality, to switch, to use as a context manager, and to unload.

    Raises:
        NptiError: If the model's layers are not understood, the adapter does not fit it, or the spec is wrong; the
            model is then as it was.

    >>> from transformers import AutoModelForCausalLM
    >>> from npti_export.demo import DEMO_MODEL
    >>> model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    >>> with load_personality(model, "openness+") as personality:
    ...     personality.set("extraversion-0.5")
    ...     print(personality.spec)
    extraversion-0.5
    """
    check_unsteered(model)
    if not isinstance(adapter, PersonalityAdapter):
        folder = find_adapter(base_model_id(model)) if adapter is None else adapter
        adapter = PersonalityAdapter.from_pretrained(folder, revision=revision, token=token)
        if isinstance(folder, Path):
            logger.info("personality adapter taken from %s", folder)
    specs = _specs(adapter, spec)
    sites = find_sites(model)
    if warning := adapter.base_model.check_fit(describe_base_model(model, sites)):
        warnings.warn(warning, UserWarning, stacklevel=2)
    if imported := _imported_doses(adapter):
        warnings.warn(
            f"the doses of {', '.join(imported)} were imported, not measured on {adapter.base_model.id}; they may be "
            "too weak or cost fluency",
            UserWarning,
            stacklevel=2,
        )
    slot_tables = Slots(adapter, sites, slots, positions, find_outputs(model, sites, adapter), thinking)
    personality = Personality(model, adapter, slot_tables)
    personality._installation = Installation(model, sites, slot_tables.tables, personality._in_force)
    try:
        personality._installation.prove()
        personality.set(specs)
    except BaseException:
        personality.unload()
        raise
    logger.info("%s", personality.describe())
    return personality


class Personality:
    """A model's personality, made by :func:`load_personality`; use that."""

    def __init__(self, model: nn.Module, adapter: PersonalityAdapter, slots: Slots) -> None:
        self.model = model
        self.adapter = adapter
        self._slots = slots
        self._set = InForce(slots, (NEUTRAL,))
        self._override: ContextVar[InForce | None] = ContextVar("npti_override", default=None)
        self._installation: Installation | None = None

    @property
    def spec(self) -> str:
        """The personality in force in this thread or task; of several rows, separated by ``;``."""
        return "; ".join(map(str, self._asked_for().selection.specs))

    @property
    def strength(self) -> float | tuple[float, ...]:
        """The dial on the personality in force in this thread or task: 1 when it is set, 0 is the model unsteered.

        It may be turned at any time, between two tokens too, for all rows or one a row; every term of the personality
        is multiplied by it. Within ``using`` it is that block's dial.

        Raises:
            NptiError: When set, if it is no number of 0 or more, or a list that has not one a row; nothing is changed.
        """
        return self._asked_for().strength

    @strength.setter
    def strength(self, strength: Strength) -> None:
        self._check_loaded()
        self._in_force().turn(strength)

    @property
    def schedule(self) -> Schedule | None:
        """The strength as a function of the step within ``generate``, in the place of ``strength``; None is none.

        The step is how many tokens the ``generate`` call has made so far, 0 while it reads the prompt. A plain forward
        has no step and goes by ``strength``. To let a personality fade over a hundred tokens::

            personality.schedule = lambda step: max(0.0, 1.0 - step / 100)
        """
        return self._asked_for().schedule

    @schedule.setter
    def schedule(self, schedule: Schedule | None) -> None:
        self._check_loaded()
        self._in_force().schedule = schedule

    @property
    def loaded(self) -> bool:
        """Whether the tables stand in the model."""
        return self._installation is not None

    def set(self, spec: SpecLike | Sequence[SpecLike]) -> None:
        """Switches the personality, for all threads; its strength is 1 then, and a schedule is ended.

        Args:
            spec: A personality; None or ``neutral`` is off; a list gives every row of the next batches its own.

        Raises:
            NptiError: If the spec is wrong or the slots are all taken by rows in use; nothing is changed then.
        """
        self._check_loaded()
        self._set.set(_specs(self.adapter, spec))

    @contextmanager
    def using(self, spec: SpecLike | Sequence[SpecLike]) -> Iterator[Personality]:
        """Another personality within the block, for this thread or task only (not for threads that it starts)."""
        self._check_loaded()
        block = InForce(self._slots, _specs(self.adapter, spec))
        token = self._override.set(block)
        try:
            yield self
        finally:
            block.release()
            try:
                self._override.reset(token)
            except ValueError as error:  # a generator that a server runs step by step is such a case
                raise NptiError(
                    "A block of using(…) was entered in one thread or task and left in another, where it did not hold; "
                    "open it anew around each call of the model."
                ) from error

    def disable(self) -> AbstractContextManager[Personality]:
        """No personality within the block, for this thread or task only (a context manager)."""
        return self.using(None)

    @contextmanager
    def scoring(self, prompt_lengths: Sequence[int]) -> Iterator[Personality]:
        """Steers plain forwards that score continuations, within the block and for this thread or task only.

        A plain forward has no generated positions. Here each row is a prompt with its continuation, filled up on the
        right: the continuation counts as generated, and the prompt's last token is steered too, whatever the adapter's
        positions (``all`` steers the whole prompt).

        Args:
            prompt_lengths: Number of tokens of each row's prompt, 1 or more.

        Raises:
            NptiError: If a length is below 1; in the forward, if there are not as many lengths as rows.

        >>> import torch
        >>> from transformers import AutoModelForCausalLM
        >>> from npti_export.demo import DEMO_MODEL
        >>> model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
        >>> row = torch.tensor([[5, 6, 7, 8]])  # a prompt of three tokens and one more
        >>> with load_personality(model, "openness+") as personality, personality.scoring([3]):
        ...     steered = model(row).logits
        >>> torch.equal(steered[:, :2], model(row).logits[:, :2]), torch.equal(steered[:, 2], model(row).logits[:, 2])
        (True, False)
        """
        self._check_loaded()
        assert self._installation is not None
        if not prompt_lengths or min(prompt_lengths) < 1:
            raise NptiError(f"Prompt lengths are {list(prompt_lengths)}; at least one token is needed in each row.")
        with self._installation.scoring(prompt_lengths):
            yield self

    def unload(self) -> None:
        """Takes the tables out: the very objects that were there stand there again."""
        if self._installation is not None:
            self._installation.remove()
            self._installation = None

    def __enter__(self) -> Personality:
        self._check_loaded()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload()

    def __repr__(self) -> str:
        state = f"{self.spec} on {self.adapter.base_model.id}" if self.loaded else "unloaded"
        return f"Personality({state})"

    def memory(self) -> int:
        """Bytes that the tables of all slots take; a personality that is added to them takes no more."""
        return sum(tables.nbytes for tables in self._slots.tables) if self.loaded else 0

    def describe(self) -> str:
        """What is steered where, in a few lines."""
        if not self.loaded:
            return f"{self!r}: the model is as it was"
        current = self._asked_for().selection
        lines = [f"{self.spec} on {self.adapter.base_model.id}, positions {current.positions}"]
        for term in dict.fromkeys(term for spec in current.specs for term in spec.terms):
            record = self.adapter.traits[term.trait].poles[term.pole]
            layers = np.unique(record.neurons.layer).tolist()
            lines.append(f"  {term}: {len(record.neurons)} neurons in {_layers(layers)}")
            lines[-1] += f", {record.method.name}, gamma {record.gamma * term.strength:g}"
            if record.residual is not None:
                lines[-1] += f", and a vector added behind {_layers(record.residual.layer.tolist())}"
        of_layers = self._slots.tables
        places = [f"{of_layers[0].site.name} to {of_layers[-1].site.name}"]
        places += [tables.output.name for tables in of_layers if tables.output]
        lines.append(f"  tables: {len(of_layers[0].cap)} slots, {self.memory()} bytes, at {', '.join(places)}")
        return "\n".join(lines)

    def _asked_for(self) -> InForce:
        """What `using` in this thread or task asked for, or else `set`."""
        return self._override.get() or self._set

    def _in_force(self) -> InForce:
        """The same, to steer by; a block that is over has no slots any more."""
        asked_for = self._asked_for()
        if asked_for.ended and any(asked_for.selection.slots):
            raise NptiError(
                f"The block of using({self.spec!r}) that a task or thread took its context from has ended, so its "
                "personality is not in force any more; end the block after what runs in it."
            )
        return asked_for

    def _check_loaded(self) -> None:
        if not self.loaded:
            raise NptiError("The personality was unloaded, so nothing would be steered; load it again.")


def _layers(numbers: list[int]) -> str:
    """Layers by their numbers: one, from the first to the last if none is left out, or all of them."""
    if not numbers:
        return "no layer"
    if len(numbers) > 2 and numbers[-1] - numbers[0] + 1 == len(numbers):
        return f"layers {numbers[0]} to {numbers[-1]}"
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _imported_doses(adapter: PersonalityAdapter) -> list[str]:
    """The traits that came from published results and were not calibrated since."""
    return [
        name
        for name, trait in adapter.traits.items()
        if trait.identification.source == "imported" and not all(pole.calibrated for pole in trait.poles.values())
    ]


def _specs(adapter: PersonalityAdapter, spec: SpecLike | Sequence[SpecLike]) -> tuple[PersonalitySpec, ...]:
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        if not spec:
            raise NptiError("An empty list names no personality; give one a row, or None for neutral.")
        return tuple(adapter.personality(row) for row in spec)
    return (adapter.personality(spec),)
