"""Personality specs: `openness+`, `openness+0.5`, `extraversion+,neuroticism-1.2`, `neutral`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real

from npti_export.errors import NptiError
from npti_export.traits.trait import TRAIT_NAME, Pole, in_canonical_order

NEUTRAL_NAME = "neutral"
_TERM = re.compile(rf"(?P<trait>{TRAIT_NAME.pattern})(?P<sign>[+-])(?P<strength>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)?")


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
        if spec is None:
            return cls()
        if isinstance(spec, PersonalitySpec):
            shown, pieces = repr(str(spec)), [str(term) for term in spec.terms]
        elif isinstance(spec, Mapping):
            shown, pieces = repr(dict(spec)), [_spelled(spec, trait, strength) for trait, strength in spec.items()]
        elif isinstance(spec, str):
            shown, pieces = repr(spec), _squeezed(spec).split(",")
        else:
            raise NptiError(f"A personality is text, a mapping or None, not {type(spec).__name__}.")
        if pieces == [NEUTRAL_NAME]:
            return cls()
        there = None if known is None else list(known)
        terms: dict[str, Term] = {}
        for piece in pieces:
            problem, term = _read_term(piece, terms, there)
            if term is None:
                listed = "" if there is None else f" (there is {', '.join(there) or 'no trait'})"
                raise NptiError(f"Personality {shown}, term {piece!r}: {problem}{listed}.")
            terms[term.trait] = term
        return cls(tuple(terms[trait] for trait in in_canonical_order(terms)))

    @property
    def is_neutral(self) -> bool:
        """Whether nothing is steered (a term of strength 0 is dropped)."""
        return all(term.strength == 0.0 for term in self.terms)

    def __str__(self) -> str:
        return ",".join(map(str, self.terms)) or NEUTRAL_NAME


NEUTRAL = PersonalitySpec()


def _read_term(piece: str, before: Mapping[str, Term], known: list[str] | None) -> tuple[str, Term | None]:
    """The term that a piece of a spec spells, or what is wrong with it."""
    match = _TERM.fullmatch(piece)
    if piece == NEUTRAL_NAME or (match and match["trait"] == NEUTRAL_NAME):
        return "neutral stands alone, without a sign, or not at all", None
    if match is None:
        return "a term is a trait, + or -, and an optional strength of 0 or more, such as openness+0.5", None
    trait, strength = match["trait"], float(match["strength"] or 1.0)
    if known is not None and trait not in known:
        return f"there is no trait {trait!r}", None
    if trait in before:
        return f"{trait} stands there twice; give each trait once", None
    if not math.isfinite(strength):
        return "the strength is too large", None
    return "", Term(trait, Pole.HIGH if match["sign"] == "+" else Pole.LOW, strength)


def _spelled(mapping: Mapping[str, float], trait: object, strength: object) -> str:
    """A trait and its signed strength as a term of a spec."""
    name = _squeezed(str(trait))
    if not TRAIT_NAME.fullmatch(name):
        raise NptiError(f"Personality {dict(mapping)!r}: {trait!r} is no name of a trait.")
    try:
        number = float(strength) if isinstance(strength, Real) and not isinstance(strength, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise NptiError(f"Personality {dict(mapping)!r}: the strength of {trait} is {strength!r}, not a finite number.")
    return f"{name}{'-' if number < 0 else '+'}{_decimal(abs(number))}"


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text).lower()


def _decimal(strength: float) -> str:
    """Shortest decimal that reads back to the same number, without an exponent."""
    text = format(Decimal(repr(float(strength))), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
