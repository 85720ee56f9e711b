"""What a server knows of its adapter: which personality a request asks for, which of its tokens are steered by it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.steering.positions import GenerateCall, Positions, first_steered
from npti_export.steering.tables import steering_rows
from npti_export.traits import PersonalitySpec, Pole, Term

REQUEST_FIELD = "personality"
"""What the field of a request is called, in ``vllm_xargs`` over HTTP and in ``extra_args`` in Python."""

MAX_SPEC_LENGTH = 1000
"""Characters of a spec; five traits with strengths of four digits take 120. Strangers send specs to a server."""

SMALLEST_SCALE = 1 / 64
"""Of what a model multiplies its feed-forward output by on the way to the residual stream, where personalities with a
dense part are served (Granite: 0.22). The vectors are divided by it, and must fit the dtype then too."""

SERVED_BY_VLLM = (Positions.GENERATED, Positions.LAST_PROMPT, Positions.ALL)
"""Which tokens can be steered under vLLM; positions ``answer`` would have to look at what was generated."""


@dataclass(frozen=True)
class RequestSteering:
    """How one request is steered.

    Args:
        spec: Its personality, never neutral.
        first: Index in the sequence of its first steered token; all from there on are.
    """

    spec: PersonalitySpec
    first: int


class ServedPersonalities:
    """An adapter's personalities as requests ask for them, the same in every process of a server.

    Args:
        adapter: Where they come from.
        default: The personality of requests that name none.
        largest: The largest shift that the activation's dtype can hold.
        presets: Names for personalities; a request may ask for one by its name.
        positions: Which positions the server can steer.

    Raises:
        NptiError: If the default, a preset, or no pole at all can be served.

    >>> import numpy as np
    >>> from npti_export.adapter.find import bundled_folder
    >>> from npti_export.adapter.neurons import NeuronSet
    >>> from npti_export.adapter.records import PoleRecord, TraitRecord
    >>> from npti_export.traits import Pole
    >>> places, numbers = [np.zeros(1, np.int16), np.zeros(1, np.int32)], [np.ones(1, np.float32)] * 3
    >>> poles = {pole: PoleRecord(NeuronSet(*places, *numbers), gamma=1.0) for pole in Pole}
    >>> base_model = PersonalityAdapter.from_pretrained(bundled_folder()).base_model
    >>> adapter = PersonalityAdapter(base_model, {"openness": TraitRecord("openness", poles)})
    >>> served = ServedPersonalities(adapter)
    >>> served.steering({"personality": "openness+"}, prompt_tokens=7)
    RequestSteering(spec=PersonalitySpec(terms=(Term(trait='openness', ...),)), first=7)
    >>> served.steering(None, prompt_tokens=7)
    """

    def __init__(
        self,
        adapter: PersonalityAdapter,
        default: str | None = None,
        largest: float = float(np.finfo(np.float32).max),
        presets: Mapping[str, str] | None = None,
        positions: Collection[Positions] = SERVED_BY_VLLM,
    ) -> None:
        self.adapter = adapter
        self._served_positions = positions
        self.presets: dict[str, PersonalitySpec] = {}
        self._widths = [layer.total for layer in adapter.base_model.neurons_per_layer]
        self._largest = largest
        # A server sees the same few specs again and again; distinct ones beyond these are parsed anew.
        self._parsed = lru_cache(maxsize=4096)(adapter.personality)
        self._checked = lru_cache(maxsize=4096)(self._check)
        if not self.poles:
            raise NptiError(next(iter(self.refused.values()), "The adapter holds no traits, so nothing can be served."))
        for name, spec in (presets or {}).items():
            self.presets[name] = self.check(spec)
        self.default = self.check(default)

    @cached_property
    def digest(self) -> str:
        """Names the adapter's contents, so that caches which outlive a server do not mix adapters."""
        return hashlib.sha256(self.adapter.contents()["config.json"]).hexdigest()[:16]

    @property
    def poles(self) -> list[str]:
        """Every pole that can be served, as a spec."""
        return [spec for spec in self._every_pole if spec not in self.refused]

    @cached_property
    def refused(self) -> dict[str, str]:
        """Every other pole, with the sentence that says why it cannot be served."""
        reasons = {}
        for spec in self._every_pole:
            try:
                self.check(spec)
            except NptiError as error:
                reasons[spec] = str(error)
        return reasons

    @property
    def _every_pole(self) -> list[str]:
        traits = self.adapter.traits.items()
        return [str(Term(name, pole)) for name, trait in traits for pole in Pole if pole in trait.poles]

    def check(self, asked: Any) -> PersonalitySpec:
        """Reads what a request asks for and makes sure that it can be served.

        Args:
            asked: The value of the field ``personality``; None is neutral.

        Raises:
            NptiError: If it is no spec, its trait is not there, or it cannot be served; in one sentence.
        """
        if isinstance(asked, str) and len(asked) > MAX_SPEC_LENGTH:
            raise NptiError(
                f"The personality has {len(asked)} characters; at most {MAX_SPEC_LENGTH} are read, which is more than "
                "all traits need."
            )
        spec = self._spec(asked)
        if not spec.is_neutral:
            self._checked(spec)
        return spec

    def steering(self, arguments: Mapping[str, Any] | None, prompt_tokens: int) -> RequestSteering | None:
        """How a request is steered that :meth:`check` has let pass.

        Args:
            arguments: Its ``extra_args``.
            prompt_tokens: How many tokens its prompt has.

        Returns:
            None if nothing of it is steered.
        """
        spec = self.default
        if arguments and (asked := arguments.get(REQUEST_FIELD)) is not None:
            spec = self._spec(asked)
        if spec.is_neutral:
            return None
        first = first_steered(self.positions(spec), GenerateCall(1, prompt_tokens))
        return None if first is None else RequestSteering(spec, first)

    def block_key(
        self, arguments: Mapping[str, Any] | None, prompt_tokens: int, start: int, end: int
    ) -> tuple[str, str] | None:
        """What a block of the prefix cache is told apart by beside its tokens.

        Keys and values of a token depend on the personality from the first steered token on. Blocks before it are
        shared by all personalities; the block that holds it also says where in it steering begins, because the same
        tokens may be prompt in one request and generated in another. Later blocks are chained to it.

        Args:
            arguments: The request's ``extra_args``.
            prompt_tokens: How many tokens its prompt has.
            start: Index in the sequence of the block's first token.
            end: One past its last.

        Returns:
            None for a block without steered tokens.
        """
        steering = self.steering(arguments, prompt_tokens)
        if steering is None or end <= steering.first:
            return None
        return REQUEST_FIELD, f"{self.digest}:{steering.spec}:{max(steering.first - start, 0)}"

    def _spec(self, asked: Any) -> PersonalitySpec:
        if not isinstance(asked, str):
            return self.adapter.personality(asked)
        return self.presets.get(asked) or self._parsed(asked)

    def positions(self, spec: PersonalitySpec) -> Positions:
        """Which tokens a personality steers, on which its terms agree; it is not neutral."""
        term = spec.terms[0]
        return Positions.named(self.adapter.traits[term.trait].poles[term.pole].positions)

    def _check(self, spec: PersonalitySpec) -> None:
        """All that could go wrong when the personality is written into the tables, before a request gets that far."""
        records = [self.adapter.traits[term.trait].poles[term.pole] for term in spec.terms]
        if len({record.positions for record in records}) > 1:
            raise NptiError(
                f"Personality {str(spec)!r}: the adapter's poles ask for different positions "
                f"({', '.join(sorted({record.positions for record in records}))}); use them one at a time."
            )
        if self.positions(spec) not in self._served_positions:
            raise NptiError(
                f"Personality {str(spec)!r}: positions {records[0].positions!r} cannot be served by this server; "
                f"{', '.join(self._served_positions)} can."
            )
        if any(record.dropout for record in records):
            raise NptiError(f"Personality {str(spec)!r}: the adapter asks for dropout, which a server does not draw.")
        rows = steering_rows(self.adapter, spec, self._widths)
        if not any(row.moves for row in rows):
            raise NptiError(f"The personality {str(spec)!r} would do nothing: the adapter moves no neurons for it.")
        dense = [row.residual / SMALLEST_SCALE for row in rows if row.residual is not None]
        added = [row.shift for row in rows] + dense
        if any(np.abs(numbers).max(initial=0.0) > self._largest for numbers in added):
            raise NptiError(
                f"Personality {str(spec)!r}: its shifts do not fit the model's activations (at most "
                f"{self._largest:g}); lower the strength."
            )
