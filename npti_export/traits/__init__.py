"""Traits, poles, personality specs, and the personas and questions that ship."""

from npti_export.traits.spec import NEUTRAL, PersonalitySpec, Term
from npti_export.traits.trait import TRAIT_NAME, TRAITS, Facet, Pole, Trait, in_canonical_order, trait_named

__all__ = [
    "NEUTRAL",
    "TRAITS",
    "TRAIT_NAME",
    "Facet",
    "PersonalitySpec",
    "Pole",
    "Term",
    "Trait",
    "in_canonical_order",
    "trait_named",
]
