"""The two poles, and the traits that the package knows with their facets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files

from npti_export.errors import NptiError

TRAIT_NAME = re.compile(r"[a-z][a-z0-9_]*")
"""What a trait may be called, one that a user defines included; ``neutral`` is reserved."""


class Pole(StrEnum):
    """One end of a trait."""

    HIGH = "high"
    LOW = "low"

    @property
    def opposite(self) -> Pole:
        """The other end."""
        return Pole.LOW if self is Pole.HIGH else Pole.HIGH

    @property
    def sign(self) -> str:
        """How the pole is written in a personality spec."""
        return "+" if self is Pole.HIGH else "-"


@dataclass(frozen=True)
class Facet:
    """One of the aspects of a trait, with a sentence for each end (what a judge's rubric is made of)."""

    name: str
    high: str
    low: str


@dataclass(frozen=True)
class Trait:
    """A personality trait.

    Args:
        name: As it stands in specs and files, for example ``openness``.
        high: What people at the high end are like, a clause without a subject.
        low: The same for the low end.
        facets: The aspects of the trait.
    """

    name: str
    high: str
    low: str
    facets: tuple[Facet, ...]

    def describe(self, pole: Pole) -> str:
        """What people at ``pole`` are like, a clause without a subject."""
        return self.high if pole is Pole.HIGH else self.low


def _shipped_traits() -> dict[str, Trait]:
    traits = {}
    text = (files("npti_export.traits") / "data" / "traits.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        record = json.loads(line)
        facets = tuple(Facet(facet["name"], facet["high"], facet["low"]) for facet in record["facets"])
        traits[record["name"]] = Trait(record["name"], record["high"], record["low"], facets)
    return traits


TRAITS: dict[str, Trait] = _shipped_traits()
"""The five shipped traits by name, in canonical order: openness, conscientiousness, extraversion, agreeableness,
neuroticism."""


def in_canonical_order(names: Iterable[str]) -> list[str]:
    """Names of traits, each once: the shipped ones in their order, then any others by name.

    >>> in_canonical_order(["wit", "neuroticism", "openness"])
    ['openness', 'neuroticism', 'wit']
    """
    there = set(names)
    return [*(name for name in TRAITS if name in there), *sorted(there - set(TRAITS))]


def trait_named(name: str) -> Trait:
    """The shipped trait of that name.

    Raises:
        NptiError: If there is none; the message lists what there is.

    >>> trait_named("openness").facets[0].name
    'imagination'
    """
    if name not in TRAITS:
        raise NptiError(f"There is no trait {name!r}; the shipped traits are {', '.join(TRAITS)}.")
    return TRAITS[name]
