"""Where people stand on the 120-item IPIP-NEO: norms from five-factor-e, an extra, which holds norms and no items."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

AGE = 30
"""Of the people compared with: five-factor-e has norms for four ages, and 30 lies in 21 to 40."""
ITEMS_PER_FACET = 4
_ORDER = ("neuroticism", "extraversion", "openness", "agreeableness", "conscientiousness")
"""Of the traits in the list of norms."""


@dataclass(frozen=True)
class Norm:
    """Mean and standard deviation of a sum of answers, each 1 to 5, over people."""

    mean: float
    deviation: float
    items: int

    def percentile(self, mean_answer: float) -> float:
        """Share of people, in percent, whose sum is smaller, taken as normally distributed.

        >>> Norm(mean=72.0, deviation=10.0, items=24).percentile(3.0)
        50.0
        """
        standard = (mean_answer * self.items - self.mean) / self.deviation
        return 50.0 * (1.0 + math.erf(standard / math.sqrt(2.0)))


def norms_for(facets: Mapping[str, tuple[str, ...]], items: int) -> dict[str, Norm]:
    """Norms by trait and by ``trait.facet``; empty where the inventory is another, or five-factor-e is missing.

    Args:
        facets: The facets of each trait, as the inventory has them.
        items: How many it has.
    """
    try:
        from ipipneo import model
        from ipipneo.norm import Norm as PublishedNorm
    except ImportError:
        return {}
    known = {trait: tuple(facet.value for facet in getattr(model, f"Big5{trait.capitalize()}")) for trait in _ORDER}
    if items != 120 or {trait: set(names) for trait, names in facets.items()} != {t: set(f) for t, f in known.items()}:
        return {}
    # The list: nothing, five means, five deviations, then for each trait six means and six deviations of its facets.
    numbers = PublishedNorm(sex="N", age=AGE, nquestion=120)["ns"]
    found = {}
    for at, trait in enumerate(_ORDER):
        found[trait] = Norm(numbers[1 + at], numbers[6 + at], 6 * ITEMS_PER_FACET)
        for place, facet in enumerate(known[trait], 11 + 12 * at):
            found[f"{trait}.{facet}"] = Norm(numbers[place], numbers[place + 6], ITEMS_PER_FACET)
    return found


def norms_source() -> str:
    """Whom percentiles compare with, for reports."""
    from importlib.metadata import version

    return f"people of 21 to 40, both sexes (norms of five-factor-e {version('five-factor-e')})"
