"""``load_personality``: puts an adapter's tables into a running model, switches them, and takes them out again."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from types import TracebackType

from torch import nn

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.find import find_adapter
from npti_export.errors import NptiError
from npti_export.steering.installation import Installation
from npti_export.steering.module import SteeredActivation
from npti_export.steering.sites import base_model_id, describe_base_model, find_sites
from npti_export.steering.slots import Selection, Slots
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
) -> Personality:
    """Gives a running model a personality; its parameters are not touched.

    Args:
        model: A transformers model with ``generate``.
        spec: Such as ``openness+``, ``extraversion+,neuroticism-1.2``, ``{"openness": 0.5}`` or ``neutral``; or a list
            of these, one a row of the batch.
        adapter: A folder, a Hub repository, or an adapter in memory; None looks for the one made for this base model.
        revision: Branch, tag or commit of a Hub repository.
        token: Hub token; None takes the one that is logged in.
        positions: Which tokens are steered, over the adapter's own choice: ``generated``, ``last_prompt+generated`` or
            ``all``.
        slots: How many personalities the tables hold at a time, neutral included.

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
    if any(isinstance(module, SteeredActivation) for module in model.modules()):
        raise NptiError("The model carries a personality already; switch it with .set(…), or .unload() it first.")
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
    slot_tables = Slots(adapter, sites, slots, positions)
    personality = Personality(model, adapter, slot_tables)
    personality._installation = Installation(model, sites, slot_tables.tables, personality._current)
    try:
        personality._installation.prove()
        personality.set(specs)
    except BaseException:
        personality.unload()
        raise
    logger.info("%r", personality)
    return personality


class Personality:
    """A model's personality, made by :func:`load_personality`; use that."""

    def __init__(self, model: nn.Module, adapter: PersonalityAdapter, slots: Slots) -> None:
        self.model = model
        self.adapter = adapter
        self._slots = slots
        self._selected = slots.acquire((NEUTRAL,))
        self._setting = Lock()
        self._override: ContextVar[Selection | None] = ContextVar("npti_override", default=None)
        self._installation: Installation | None = None

    @property
    def spec(self) -> str:
        """The personality in force in this thread or task; of several rows, separated by ``;``."""
        return "; ".join(map(str, self._current().specs))

    @property
    def loaded(self) -> bool:
        """Whether the tables stand in the model."""
        return self._installation is not None

    def set(self, spec: SpecLike | Sequence[SpecLike]) -> None:
        """Switches the personality, for all threads.

        Args:
            spec: A personality; None or ``neutral`` is off; a list gives every row of the next batches its own.

        Raises:
            NptiError: If the spec is wrong or the slots are all taken by rows in use; nothing is changed then.
        """
        self._check_loaded()
        specs = _specs(self.adapter, spec)
        with self._setting:
            self._selected = self._slots.acquire(specs, instead_of=self._selected)

    @contextmanager
    def using(self, spec: SpecLike | Sequence[SpecLike]) -> Iterator[Personality]:
        """Another personality within the block, for this thread or task only (not for threads that it starts)."""
        self._check_loaded()
        selection = self._slots.acquire(_specs(self.adapter, spec))
        token = self._override.set(selection)
        try:
            yield self
        finally:
            self._override.reset(token)
            self._slots.release(selection)

    def disable(self) -> AbstractContextManager[Personality]:
        """No personality within the block, for this thread or task only (a context manager)."""
        return self.using(None)

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

    def describe(self) -> str:
        """What is steered where, in a few lines."""
        current = self._current()
        lines = [f"{self.spec}: {self.adapter.base_model.num_layers} layers of {self.adapter.base_model.id}"]
        for spec in current.specs:
            for term in spec.terms:
                record = self.adapter.traits[term.trait].poles[term.pole]
                dose = f"gamma {record.gamma * term.strength:g}"
                lines.append(f"  {term}: {len(record.neurons)} neurons, {dose}, positions {current.positions}")
        return "\n".join(lines)

    def _current(self) -> Selection:
        return self._override.get() or self._selected

    def _check_loaded(self) -> None:
        if not self.loaded:
            raise NptiError("The personality was unloaded, so nothing would be steered; load it again.")


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
