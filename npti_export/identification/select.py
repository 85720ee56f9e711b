"""Select: statistics of both poles → the neurons of each pole, and how sure the choice is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import Method
from npti_export.identification.measure import NeuronStatistics

FLOOR_SHARE = 0.00436
"""Never fewer neurons a pole than this share of all: the paper's 2,000 of Llama-3-8B's 458,752."""


def select(pole: NeuronStatistics, opposite: NeuronStatistics, method: Method, gamma: float) -> NeuronSet:
    """Chooses the neurons of a pole (paper, section 3) and makes their shift (equation 4).

    All neurons whose probability is higher by ``method.min_difference`` are taken, and never fewer than 0.436 % of all,
    by falling difference, ties by (layer, index); always with difference and target above 0. Differences are rounded to
    float32 before they are compared, as they stand in the file: .6 - .5 is then not below .1.

    Args:
        pole: Statistics of the pole's own answers.
        opposite: Statistics of the other pole's answers.
        method: Thresholds and the form of the shift.
        gamma: The dose.
    """
    delta = (pole.probability - opposite.probability).astype(np.float32)
    target = pole.percentile(method.percentile)
    chosen = choose(delta, target, method.min_difference)
    layer, index = neuron_numbers(pole.widths)
    mean, variance = pole.answer_moments()
    other_mean, other_variance = opposite.answer_moments()
    spread = np.sqrt((variance + other_variance) / 2)
    effect_size = np.divide(mean - other_mean, spread, out=np.zeros_like(mean), where=spread > 0)
    difference = pole.total / max(1, pole.tokens) - opposite.total / max(1, opposite.tokens)
    return NeuronSet(
        layer=layer[chosen],
        index=index[chosen],
        shift=method.shift(gamma, target[chosen], delta[chosen]),
        target=target[chosen],
        delta=delta[chosen],
        mean_difference=difference[chosen].astype(np.float32),
        effect_size=effect_size[chosen].astype(np.float32),
    )


def choose(delta: NDArray[np.float32], target: NDArray[np.float32], min_difference: float) -> NDArray[np.int64]:
    """Flat numbers of the chosen neurons in ascending order, int64 [chosen].

    Args:
        delta: Difference of probabilities of all neurons, float32 [N].
        target: Their targets, float32 [N].
        min_difference: Smallest difference, unless the floor asks for more neurons.
    """
    ranked = np.argsort(-delta, kind="stable")
    eligible = ranked[(delta[ranked] > 0) & (target[ranked] > 0)]
    enough = int((delta[eligible] >= np.float32(min_difference)).sum())
    return np.sort(eligible[: max(enough, math.ceil(FLOOR_SHARE * len(delta)))])


def neuron_numbers(widths: tuple[int, ...]) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """Layer and index of every neuron in flat order, int16 and int32 [N]."""
    layer = np.repeat(np.arange(len(widths), dtype=np.int16), widths)
    index = np.concatenate([np.arange(width, dtype=np.int32) for width in widths])
    return layer, index


def split_half_reliability(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Correlation over all neurons of delta from two halves of the questions, corrected to full length.

    Spearman–Brown: r' = 2r / (1 + r), never below -1. 0 where a half has no spread.

    Args:
        first: Probability at the high pole minus that at the low one, from one half of the questions, float64 [N].
        second: The same from the other half.

    >>> round(split_half_reliability(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])), 6)  # r = 1/2
    0.666667
    """
    if first.std() == 0 or second.std() == 0:
        return 0.0
    r = float(np.corrcoef(first, second)[0, 1])
    return max(-1.0, 2 * r / (1 + r)) if r > -1 else -1.0
