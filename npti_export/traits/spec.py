"""Personality specs: `openness+`, `openness+0.5`, `extraversion+,neuroticism-1.2`, `neutral`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from npti_export.errors import NptiError
from npti_export.traits.trait import TRAIT_NAME, TRAITS, Pole

NEUTRAL_NAME = "neutral"
_TERM = re.compile(rf"(?P<trait>{TRAIT_NAME.pattern})(?P<sign>[+-])(?P<strength>\d+(?:\.\d*)?|\.\d+)?")


@dataclass(frozen=True)
class Term:
    """One trait of a personality: which pole, and how strongly (1.0 is the recommended dose)."""

    trait: str
    pole: Pole
    strength: float = 1.0

    def __str__(self) -> str:
        return f"{self.trait}{self.pole.sign}" + ("" if self.strength == 1.0 else _decimal(self.strength))


@dataclass(frozen=True)
class PersonalitySpec:
    """A personality as one writes it: terms in canonical order; no terms is neutral.

    Canonical order is that of the shipped traits, then any others by name, so that two spellings of one personality
    are equal and sum in the same order.

    >>> PersonalitySpec.parse("Openness-1.2, openness_b+") == PersonalitySpec.parse("openness_b+,openness-1.20")
    True
    >>> str(PersonalitySpec.parse("neutral"))
    'neutral'
    """

    terms: tuple[Term, ...] = ()

    @classmethod
    def parse(
        cls, spec: str | Mapping[str, float] | PersonalitySpec | None, known: Iterable[str] | None = None
    ) -> PersonalitySpec:
        """Reads a spec.

        Args:
            spec: Comma-separated terms, each a trait, ``+`` or ``-``, and an optional decimal strength (case and
                blanks do not matter); or ``neutral`` or None; or a mapping of trait to signed strength.
            known: The traits that are there; None takes any well-formed name.

        Returns:
            The spec, its terms in canonical order.

        Raises:
            NptiError: A ValueError that shows the spec, points at the term and lists what is there.

        >>> PersonalitySpec.parse({"openness": 0.5, "neuroticism": -1.2}).terms[1]
        Term(trait='neuroticism', pole=<Pole.LOW: 'low'>, strength=1.2)
        """
        if isinstance(spec, PersonalitySpec):
            _check_known(str(spec), spec.terms, known)
            return spec
        if spec is None:
            return cls()
        if isinstance(spec, Mapping):
            return cls.parse(_spelled(spec), known)
        if not isinstance(spec, str):
            raise NptiError(f"A personality is text, a mapping or None, not {type(spec).__name__}.")
        text = re.sub(r"\s+", "", spec).lower()
        if text == NEUTRAL_NAME:
            return cls()
        terms: list[Term] = []
        for piece in text.split(","):
            term = _parse_term(spec, piece, known)
            if any(term.trait == other.trait for other in terms):
                raise NptiError(f"{_quoted(spec)}: {term.trait} stands there twice; give each trait once.")
            terms.append(term)
        _check_known(spec, terms, known)
        return cls(tuple(sorted(terms, key=_canonical)))

    @property
    def is_neutral(self) -> bool:
        """Whether nothing is steered (a term of strength 0 is dropped)."""
        return all(term.strength == 0.0 for term in self.terms)

    def __str__(self) -> str:
        return ",".join(map(str, self.terms)) or NEUTRAL_NAME


NEUTRAL = PersonalitySpec()


def _parse_term(spec: str, piece: str, known: Iterable[str] | None) -> Term:
    if piece == NEUTRAL_NAME:
        raise NptiError(f"{_quoted(spec)}: neutral stands alone or not at all.")
    match = _TERM.fullmatch(piece)
    if match is None:
        raise NptiError(
            f"{_quoted(spec)}: cannot read the term {piece!r}; a term is a trait, + or -, and an optional strength "
            f"such as 0.5, for example openness+0.5{_there(known)}."
        )
    strength = float(match["strength"]) if match["strength"] else 1.0
    if not math.isfinite(strength):
        raise NptiError(f"{_quoted(spec)}: the strength in {piece!r} is too large.")
    return Term(match["trait"], Pole.HIGH if match["sign"] == "+" else Pole.LOW, strength)


def _check_known(spec: str, terms: Iterable[Term], known: Iterable[str] | None) -> None:
    if known is None:
        return
    names = list(known)
    for term in terms:
        if term.trait not in names:
            raise NptiError(f"{_quoted(spec)}: there is no trait {term.trait!r}{_there(names)}.")


def _there(known: Iterable[str] | None) -> str:
    return "" if known is None else f" (there is {', '.join(known)})"


def _spelled(mapping: Mapping[str, float]) -> str:
    pieces = []
    for trait, strength in mapping.items():
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
            raise NptiError(f"{dict(mapping)!r}: the strength of {trait} is {strength!r}, not a number.")
        pieces.append(f"{trait}{'-' if strength < 0 else '+'}{_decimal(abs(strength))}")
    return ",".join(pieces) or NEUTRAL_NAME


def _decimal(strength: float) -> str:
    """Shortest decimal that reads back to the same number, without an exponent."""
    from decimal import Decimal

    text = format(Decimal(repr(float(strength))), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _canonical(term: Term) -> tuple[int, str]:
    order = list(TRAITS)
    return (order.index(term.trait) if term.trait in order else len(order), term.trait)


def _quoted(spec: str) -> str:
    return f"Personality {spec!r}"
