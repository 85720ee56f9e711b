"""Select: statistics of both poles → the neurons of each pole."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import Method
from npti_export.identification.statistics import NeuronStatistics

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
    delta = (pole.whole.probability - opposite.whole.probability).astype(np.float32)
    target = pole.percentile(method.percentile)
    chosen = choose(delta, target, method.min_difference)
    layer, index = neuron_numbers(pole.widths)
    mean, variance = pole.whole.answer_moments()
    other_mean, other_variance = opposite.whole.answer_moments()
    spread = np.sqrt((variance + other_variance) / 2)
    effect_size = np.divide(mean - other_mean, spread, out=np.zeros_like(mean), where=spread > 0)
    difference = pole.whole.mean - opposite.whole.mean
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
