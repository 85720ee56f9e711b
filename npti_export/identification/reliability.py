"""How sure the statistics are: agreement of two halves of the answers, and intervals of delta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npti_export.identification.select import choose, delta_of, effect_size_of
from npti_export.identification.selector import Selector
from npti_export.identification.statistics import NeuronCounts, NeuronStatistics, considered
from npti_export.traits import Pole

Z_95 = 1.959964
"""Half the width of a 95 % interval in standard errors."""
DIGITS = 6
"""Of the figures in files."""


@dataclass(frozen=True)
class Reliability:
    """How sure the statistics of both poles of a trait are.

    Args:
        questions: Asked at each pole so far.
        split_half: Correlation over all neurons of delta from two halves of the questions, corrected to full length.
        overlap: Of the neurons that either half would choose at a pole, the share that both would.
        margin: Half the width of delta's 95 % interval, median over the neurons that are chosen at a pole; None where
            there are none, or fewer than two answers.
    """

    questions: int
    split_half: float
    overlap: dict[str, float]
    margin: dict[str, float | None]


def reliability(statistics: Mapping[Pole, NeuronStatistics], selector: Selector, questions: int) -> Reliability:
    """Estimates how sure the statistics of both poles are.

    Args:
        statistics: Of both poles, halves of the same questions.
        selector: Method and thresholds that neurons are chosen by.
        questions: Asked at each pole so far.
    """
    high, low = statistics[Pole.HIGH], statistics[Pole.LOW]
    deltas = [one.probability - other.probability for one, other in zip(high.halves, low.halves, strict=True)]
    counted = considered(high.whole, low.whole)
    overlap, margin = {}, {}
    for pole in Pole:
        own, opposite = statistics[pole], statistics[pole.opposite]
        halves = [
            chosen_of(*pair, selector, own.widths, counted) for pair in zip(own.halves, opposite.halves, strict=True)
        ]
        overlap[str(pole)] = round(jaccard(*halves), DIGITS)
        chosen = chosen_of(own.whole, opposite.whole, selector, own.widths, counted)
        margins = delta_margin(own.whole, opposite.whole)[chosen]
        known = bool(len(margins)) and bool(np.isfinite(margins).all())
        margin[str(pole)] = round(float(np.median(margins)), DIGITS) if known else None
    return Reliability(
        questions, round(split_half_reliability(*(delta[counted] for delta in deltas)), DIGITS), overlap, margin
    )


def delta_margin(pole: NeuronCounts, opposite: NeuronCounts) -> NDArray[np.float64]:
    """Half the width of delta's 95 % interval over draws of answers, float64 [N]; infinite with fewer than two answers.

    The unit is the answer (:attr:`NeuronCounts.probability_variance`), and the poles' answers count as independent:
    what they share by answering the same questions makes the true interval narrower, never wider.

    Args:
        pole: Counts of the pole's own answers.
        opposite: Counts of the other pole's.
    """
    return Z_95 * np.sqrt(pole.probability_variance + opposite.probability_variance)


def chosen_of(
    pole: NeuronCounts,
    opposite: NeuronCounts,
    selector: Selector,
    widths: tuple[int, ...],
    counted: NDArray[np.bool_] | bool = True,
) -> NDArray[np.int64]:
    """Flat numbers of the neurons that these counts would choose, ascending, int64 [chosen].

    Args:
        pole: Counts of the pole's own answers.
        opposite: Counts of the other pole's.
        selector: Method and thresholds.
        widths: Number of neurons of each layer.
        counted: Which neurons may be chosen, bool [N].
    """
    fires = pole.above_zero(selector.percentile)
    delta = np.where(counted, delta_of(pole, opposite), np.float32(0))
    effect_size = np.where(counted, effect_size_of(pole, opposite), np.float32(0))
    return choose(selector, widths, delta, fires, effect_size)


def jaccard(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Of what either set holds, the share that both do; 0 where both are empty.

    >>> jaccard(np.array([1, 2, 3]), np.array([2, 3, 4]))
    0.5
    """
    union = np.union1d(first, second)
    return len(np.intersect1d(first, second)) / len(union) if len(union) else 0.0


def split_half_reliability(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Correlation over all neurons of delta from two halves of the questions, corrected to full length.

    Spearman–Brown: r' = 2r / (1 + r), never below -1. 0 where a half has no spread.

    Args:
        first: Probability at the high pole minus that at the low one, from one half of the questions, float64 [N].
        second: The same from the other half.

    >>> round(split_half_reliability(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])), 6)  # r = 1/2
    0.666667
    """
    if not first.size or first.std() == 0 or second.std() == 0:
        return 0.0
    r = float(np.corrcoef(first, second)[0, 1])
    return max(-1.0, 2 * r / (1 + r)) if r > -1 else -1.0
