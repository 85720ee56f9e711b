"""``load_personality``: puts an adapter's tables into a running model, switches them, and takes them out again."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.find import find_adapter
from npti_export.errors import NptiError
from npti_export.steering.module import SteeredActivation
from npti_export.steering.positions import (
    GenerateCall,
    Positions,
    TokenSteering,
    first_steered,
    forward_span,
    prompt_length_of,
    token_slots,
)
from npti_export.steering.sites import Site, base_model_id, describe_base_model, find_sites, one_token_forward
from npti_export.steering.tables import SteeringTables, steering_rows
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
    personality = Personality(model, adapter, sites, positions, slots)
    personality._install()
    try:
        personality._prove()
        personality.set(specs)
    except BaseException:
        personality.unload()
        raise
    logger.info("%r", personality)
    return personality


class Personality:
    """A model's personality, made by :func:`load_personality`; use that."""

    def __init__(
        self,
        model: nn.Module,
        adapter: PersonalityAdapter,
        sites: list[Site],
        positions: str | None,
        slots: int,
    ) -> None:
        if slots < 2:
            raise NptiError(f"slots is {slots}; at least 2 are needed, neutral and one more.")
        self.model = model
        self.adapter = adapter
        self._sites = sites
        self._positions = None if positions is None else Positions.named(positions)
        self._tables = [SteeringTables(site, slots) for site in sites]
        self._held: list[PersonalitySpec | None] = [NEUTRAL] + [None] * (slots - 1)
        self._rows: tuple[PersonalitySpec, ...] = (NEUTRAL,)
        self._override: ContextVar[tuple[PersonalitySpec, ...] | None] = ContextVar("npti_override", default=None)
        self._steering: ContextVar[TokenSteering | None] = ContextVar("npti_steering", default=None)
        self._generate_call: ContextVar[GenerateCall | None] = ContextVar("npti_generate", default=None)
        self._originals: list[nn.Module] = []
        self._hooks: list[Any] = []
        self._own_generate = model.__dict__.get("generate")
        self._warned = False

    @property
    def spec(self) -> str:
        """The personality in force in this thread or task; of several rows, separated by ``;``."""
        return "; ".join(map(str, self._current()))

    @property
    def loaded(self) -> bool:
        """Whether the tables stand in the model."""
        return bool(self._originals)

    def set(self, spec: SpecLike | Sequence[SpecLike]) -> None:
        """Switches the personality.

        Args:
            spec: A personality; None or ``neutral`` is off; a list gives every row of the next batches its own.

        Raises:
            NptiError: If the spec is wrong or the slots are all taken by rows in use; nothing is changed then.
        """
        specs = _specs(self.adapter, spec)
        self._ensure_slots(specs)
        self._rows = specs

    @contextmanager
    def using(self, spec: SpecLike | Sequence[SpecLike]) -> Iterator[Personality]:
        """Another personality within the block, for this thread or task only."""
        specs = _specs(self.adapter, spec)
        self._ensure_slots(specs)
        token = self._override.set(specs)
        try:
            yield self
        finally:
            self._override.reset(token)

    def disable(self) -> Any:
        """No personality within the block, for this thread or task only (a context manager)."""
        return self.using(None)

    def unload(self) -> None:
        """Takes the tables out: the very objects that were there stand there again."""
        if not self.loaded:
            return
        for site, original in zip(self._sites, self._originals, strict=False):
            setattr(site.owner, site.attribute, original)
        self._originals = []
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.model.__dict__.pop("generate", None)
        if self._own_generate is not None:
            self.model.__dict__["generate"] = self._own_generate

    def __enter__(self) -> Personality:
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
        lines = [f"{self.spec}: {len(self._sites)} layers of {self.adapter.base_model.id}"]
        positions, _ = self._manner(self._current())
        for spec in self._current():
            for term in spec.terms:
                record = self.adapter.traits[term.trait].poles[term.pole]
                dose = f"gamma {record.gamma * term.strength:g}"
                lines.append(f"  {term}: {len(record.neurons)} neurons, {dose}, positions {positions}")
        return "\n".join(lines)

    def _current(self) -> tuple[PersonalitySpec, ...]:
        return self._override.get() or self._rows

    def _manner(self, specs: tuple[PersonalitySpec, ...]) -> tuple[Positions, float]:
        """Positions and dropout, on which all terms of all rows must agree (the loader's positions come first)."""
        terms = [term for spec in specs for term in spec.terms]
        records = [self.adapter.traits[term.trait].poles[term.pole] for term in terms]
        asked = {record.positions for record in records} if self._positions is None else {self._positions}
        dropouts = {record.dropout for record in records}
        if len(asked) > 1 or len(dropouts) > 1:
            raise NptiError(
                f"{'; '.join(map(str, specs))}: the adapter's poles ask for different positions or dropout "
                f"({', '.join(sorted(asked))}; {sorted(dropouts)}); pass positions=…, or use them one at a time."
            )
        return Positions.named(asked.pop() if asked else "generated"), dropouts.pop() if dropouts else 0.0

    def _ensure_slots(self, specs: tuple[PersonalitySpec, ...]) -> None:
        """Fills a slot for every personality that has none, taking those that are not in use."""
        self._manner(specs)
        wanted = [spec for spec in dict.fromkeys(specs) if not spec.is_neutral]
        missing = [spec for spec in wanted if spec not in self._held]
        in_use = {*wanted, *self._rows, *(self._override.get() or ())}
        free = [slot for slot, held in enumerate(self._held) if slot and (held is None or held not in in_use)]
        if len(missing) > len(free):
            raise NptiError(
                f"{len(missing)} more personalities were asked for and {len(free)} slots are free; load with slots="
                f"{len(self._held) + len(missing) - len(free)} or more."
            )
        widths = [site.width for site in self._sites]
        for slot, spec in zip(free, missing, strict=False):
            self._held[slot] = None
            for tables, row in zip(self._tables, steering_rows(self.adapter, spec, widths), strict=True):
                tables.fill(slot, row)
            self._held[slot] = spec

    def _slot(self, spec: PersonalitySpec) -> int:
        return 0 if spec.is_neutral else self._held.index(spec)

    def _install(self) -> None:
        for site, tables in zip(self._sites, self._tables, strict=True):
            original = site.activation
            setattr(site.owner, site.attribute, SteeredActivation(original, tables, self._steering))
            self._originals.append(original)
        self._hooks.append(self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        self._hooks.append(self.model.register_forward_hook(self._after_forward, always_call=True))
        if hasattr(self.model, "generate"):
            generate: Any = self.model.generate
            self.model.__dict__["generate"] = self._recording(generate)

    def _prove(self) -> None:
        """One token through the installed modules; each must be called, or steering would silently do nothing."""
        ran: set[str] = set()
        hooks = [
            site.activation.register_forward_hook(lambda *_, name=site.name: ran.add(name)) for site in self._sites
        ]
        try:
            one_token_forward(self.model)
        finally:
            for hook in hooks:
                hook.remove()
        if silent := [site.name for site in self._sites if site.name not in ran]:
            raise NptiError(f"The activation {silent[0]} was replaced but not called; the model goes round it.")

    def _recording(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """``generate`` that records, for the thread or task that calls it, how long the prompt is."""

        @wraps(generate)
        def recorded(*arguments: Any, **keywords: Any) -> Any:
            token = self._generate_call.set(GenerateCall(prompt_length_of(arguments, keywords)))
            try:
                return generate(*arguments, **keywords)
            finally:
                self._generate_call.reset(token)

        return recorded

    def _before_forward(self, _model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        current = self._current()
        if all(spec.is_neutral for spec in current):
            self._steering.set(None)
            return
        rows, first, length = forward_span(keywords, arguments)
        positions, dropout = self._manner(current)
        start = first_steered(positions, self._generate_call.get())
        if start is None and not self._warned:
            self._warned = True
            warnings.warn(
                "A plain forward has no generated positions, so nothing is steered in it; use generate, or load with "
                "positions='all'.",
                UserWarning,
                stacklevel=3,
            )
        row_slots = [self._slot(spec) for spec in current]
        slots = token_slots(row_slots, rows, first, length, start, self._sites[0].device)
        self._steering.set(None if slots is None else TokenSteering(slots, dropout))

    def _after_forward(self, *_: Any) -> None:
        self._steering.set(None)


def _specs(adapter: PersonalityAdapter, spec: SpecLike | Sequence[SpecLike]) -> tuple[PersonalitySpec, ...]:
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        if not spec:
            raise NptiError("An empty list names no personality; give one a row, or None for neutral.")
        return tuple(adapter.personality(row) for row in spec)
    return (adapter.personality(spec),)
