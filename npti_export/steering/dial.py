"""Strength as a dial: the personalities in force, and how strongly they are while something is being generated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from threading import Lock

from npti_export.errors import NptiError
from npti_export.steering.slots import Selection, Slots
from npti_export.traits import PersonalitySpec

Strength = float | Sequence[float]
"""A factor on every term of a personality: one for all rows, or one a row of the batch."""

Schedule = Callable[[int], Strength]
"""The strength by the step of a ``generate`` call: how many tokens it has made when a forward begins."""


class InForce:
    """What ``set`` or ``using`` asked for. Another strength is another row of the tables, exact and written in place.

    Args:
        slots: Where the personalities stand.
        specs: One for all rows, or one a row.
    """

    def __init__(self, slots: Slots, specs: tuple[PersonalitySpec, ...]) -> None:
        self._slots = slots
        self._specs = specs
        self._lock = Lock()
        self.ended = False  # whether the block of `using` is over; its slots may hold another personality then
        self.strength: float | tuple[float, ...] = 1.0
        self.schedule: Schedule | None = None
        self.selection = slots.acquire(specs)

    def set(self, specs: tuple[PersonalitySpec, ...]) -> None:
        """Other personalities, at strength 1 and without a schedule."""
        with self._lock:
            self.selection = self._slots.acquire(specs, instead_of=self.selection)
            self._specs, self.strength, self.schedule = specs, 1.0, None

    def turn(self, strength: Strength) -> None:
        """The same personalities at another strength; nothing has changed if it is refused."""
        with self._lock:
            specs = scaled(self._specs, strength)
            self.selection = self._slots.acquire(specs, instead_of=self.selection)
            self.strength = tuple(strength) if isinstance(strength, Sequence) else strength

    def at(self, step: int, before: Selection | None) -> Selection | None:
        """The personalities at the strength that the schedule says, held for one ``generate`` call; None without one.

        Args:
            step: How many tokens the call has made.
            before: What it held in its last forward; None in the first.
        """
        with self._lock:  # another thread may set others, which ends the schedule
            specs, schedule = self._specs, self.schedule
        if schedule is None:
            return None
        return self._slots.acquire(scaled(specs, schedule(step)), instead_of=before)

    def let_go(self, selection: Selection) -> None:
        """Ends what :meth:`at` held."""
        self._slots.release(selection)

    def release(self) -> None:
        """Ends the personalities' hold on their slots."""
        with self._lock:
            self.ended = True
            self.let_go(self.selection)


def scaled(specs: tuple[PersonalitySpec, ...], strength: Strength) -> tuple[PersonalitySpec, ...]:
    """Personalities with every term's strength multiplied.

    Args:
        specs: One for all rows, or one a row.
        strength: 0 or more; or one a row, which makes of one personality as many rows.

    Raises:
        NptiError: If a strength is no such number, or there are not as many as rows.

    >>> [str(spec) for spec in scaled((PersonalitySpec.parse("openness+,neuroticism-0.5"),), [1, 0.5])]
    ['openness+,neuroticism-0.5', 'openness+0.5,neuroticism-0.25']
    """
    strengths = list(strength) if isinstance(strength, Sequence) and not isinstance(strength, str) else [strength]
    for number in strengths:
        if not isinstance(number, Real) or isinstance(number, bool) or not 0.0 <= number < math.inf:
            raise NptiError(f"A strength is {number!r}; it is a number of 0 or more, or a list of these, one a row.")
    if not strengths or (len(strengths) > 1 < len(specs) and len(strengths) != len(specs)):
        raise NptiError(f"{len(strengths)} strengths were given for {len(specs)} rows; give one, or one a row.")
    rows = max(len(specs), len(strengths))
    pairs = zip(specs * (rows // len(specs)), strengths * (rows // len(strengths)), strict=True)
    return tuple(
        PersonalitySpec(tuple(replace(term, strength=term.strength * float(number)) for term in spec.terms))
        for spec, number in pairs
    )
