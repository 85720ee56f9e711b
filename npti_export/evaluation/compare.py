"""Methods held against each other: paired differences, at equal cost too, and what more of a dose does.

Scores are float64 [questions], nan where the judge failed; a question that failed under either side is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from npti_export.evaluation.intervals import Estimate, bootstrap_mean

Scores = NDArray[np.float64]
BOTH_SIDES = 2
"""Fewest points that have a rank correlation are one more than these."""


@dataclass(frozen=True)
class Dosed:
    """One dose of a dial, as it is compared.

    Args:
        strength: The dial; 0 is the unsteered model.
        effect: Towards the pole, one a question.
        cost: Rise of the NLL, nats a token, one a question.
    """

    strength: float
    effect: Scores
    cost: Scores


@dataclass(frozen=True)
class Matched:
    """A dial turned to a given cost, between two doses that were measured.

    Args:
        strength: Where it stands then.
        effect: There, one a question, interpolated.
        cost: Mean cost there; less than asked for where the largest dose costs less.
    """

    strength: float
    effect: Scores
    cost: float


def paired_difference(one: Scores, other: Scores, seed: int) -> Estimate | None:
    """Mean of the differences over questions that both have, with its interval; None where there are none.

    >>> paired_difference(np.array([3.0, np.nan]), np.array([1.0, 2.0]), 0)
    Estimate(mean=2.0, low=2.0, high=2.0)
    """
    differences = one - other
    there = ~np.isnan(differences)
    return bootstrap_mean(differences[there], seed) if there.any() else None


def matched(doses: Sequence[Dosed], cost: float) -> Matched | None:
    """Turns a dial up from 0 until it costs so much, linearly between the doses that were measured.

    Args:
        doses: Ascending, the unsteered model not among them.
        cost: Mean rise of the NLL to be reached, nats a token.

    Returns:
        The first place that costs so much; the largest dose where none does; None where the cost is not above 0, at
        which nothing is steered.
    """
    if cost <= 0.0 or not doses:
        return None
    below = Dosed(0.0, np.zeros_like(doses[0].effect), np.zeros_like(doses[0].cost))
    for above in doses:
        low, high = float(below.cost.mean()), float(above.cost.mean())
        if high >= cost:
            part = (cost - low) / (high - low)
            strength = below.strength + part * (above.strength - below.strength)
            return Matched(strength, (1.0 - part) * below.effect + part * above.effect, cost)
        below = above
    return Matched(below.strength, below.effect, float(below.cost.mean()))


def rank_correlation(strengths: Sequence[float], effects: Sequence[float]) -> float | None:
    """Spearman's correlation of dose and effect; None of fewer than three doses or where nothing varies.

    >>> rank_correlation([0, 1, 2, 3], [0.0, 0.1, 0.3, 0.2])
    0.8
    """
    if len(strengths) <= BOTH_SIDES or len(set(effects)) == 1:
        return None
    return round(float(stats.spearmanr(strengths, effects).statistic), 10)


def tips_over(strengths: Sequence[float], effects: Sequence[Scores], seed: int) -> float | None:
    """The dose of the largest effect, where a larger dose has surely less; None where none has.

    Args:
        strengths: Ascending.
        effects: Of each, one a question.
        seed: Decides the resamples.
    """
    best = max(range(len(strengths)), key=lambda at: float(np.nanmean(effects[at])))
    for after in effects[best + 1 :]:
        loss = paired_difference(after, effects[best], seed)
        if loss is not None and loss.high < 0.0:
            return strengths[best]
    return None
