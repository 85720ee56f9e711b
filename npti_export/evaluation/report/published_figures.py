"""Figures that others published for the same measure: the sum of the poles' mean scores, at most 10."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFigure:
    """One line of a published table.

    Args:
        method: As the paper calls it.
        total: Sum of both poles' mean scores by the judge, mean over the five traits, at most 10.
        variance: As given beside it; None where none is known.
    """

    method: str
    total: float
    variance: float | None


SOURCE = "Deng et al., ICLR 2025 (arXiv 2410.12327): PersonalityBench, scores of 1 to 5 by a GPT-4o judge"
PUBLISHED: dict[str, tuple[PublishedFigure, ...]] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": (
        PublishedFigure("NPTI", 9.43, 0.49),
        PublishedFigure("simple prompt", 8.39, 0.96),
        PublishedFigure("persona prompt", 9.43, 0.83),
        PublishedFigure("ActAdd", 8.20, None),
        PublishedFigure("PAS", 6.93, None),
    ),
}
"""By base model, as its Hub id is written."""


def published_for(model: str) -> tuple[PublishedFigure, ...]:
    """What was published for a base model; nothing for one that nobody published figures of.

    >>> published_for("meta-llama/Meta-Llama-3-8B-Instruct")[0].total, published_for("npti-demo")
    (9.43, ())
    """
    return PUBLISHED.get(model, ())
