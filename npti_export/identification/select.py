"""Select: statistics of both poles → the neurons of each pole, and the residual where the method has one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import HAS_RESIDUAL, NPTI, PoleRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.identification.selector import Selector
from npti_export.identification.statistics import NeuronCounts, NeuronStatistics

FLOOR_SHARE = 0.00436
"""Never fewer neurons a pole by delta than this share of all: the paper's 2,000 of Llama-3-8B's 458,752."""
START_GAMMA = 1.4
"""The paper's dose of ``npti``, until calibration has found one; the other methods start at 1."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """How one pole differs from the other, for all N neurons and for the residual stream behind every layer.

    Args:
        widths: Number of neurons of each layer; they add up to N.
        delta: Probability minus that of the opposite pole, float32 [N].
        target: Percentile of the pole's own activations, float32 [N].
        mean_difference: Mean activation over tokens minus that of the opposite pole, float32 [N].
        effect_size: Cohen's d of the answers' mean activations, float32 [N]; 0 where they do not vary.
        stream: Mean residual stream minus that of the opposite pole, float32 [layers, hidden]; None if not measured.
    """

    widths: tuple[int, ...]
    delta: NDArray[np.float32]
    target: NDArray[np.float32]
    mean_difference: NDArray[np.float32]
    effect_size: NDArray[np.float32]
    stream: NDArray[np.float32] | None


def contrast_of(pole: NeuronStatistics, opposite: NeuronStatistics, percentile: float) -> Contrast:
    """Compares the statistics of the two poles.

    Differences are rounded to float32 before anything is compared with them, as they stand in the file: .6 - .5 is then
    not below .1.

    Args:
        pole: Of the pole's own answers.
        opposite: Of the other pole's answers.
        percentile: Which percentile of the activations is the target.
    """
    mean, other = pole.stream_mean, opposite.stream_mean
    return Contrast(
        pole.widths,
        delta_of(pole.whole, opposite.whole),
        pole.percentile(percentile),
        (pole.whole.mean - opposite.whole.mean).astype(np.float32),
        effect_size_of(pole.whole, opposite.whole),
        None if mean is None or other is None else (mean - other).astype(np.float32),
    )


def delta_of(pole: NeuronCounts, opposite: NeuronCounts) -> NDArray[np.float32]:
    """Difference of the probabilities, float32 [N]."""
    return (pole.probability - opposite.probability).astype(np.float32)


def effect_size_of(pole: NeuronCounts, opposite: NeuronCounts) -> NDArray[np.float32]:
    """Cohen's d of the answers' mean activations, by the root mean square of the poles' spreads, float32 [N].

    0 where no answer differs from the others.
    """
    mean, variance = pole.answer_moments()
    other_mean, other_variance = opposite.answer_moments()
    spread = np.sqrt((variance + other_variance) / 2)
    return np.divide(mean - other_mean, spread, out=np.zeros_like(mean), where=spread > 0).astype(np.float32)


def select(contrast: Contrast, selector: Selector) -> PoleRecord:
    """Chooses the neurons of a pole and makes their shift, at a dose that is still to be found.

    ``npti`` and ``residual`` take all neurons whose probability is higher by ``min_difference``, and never fewer than
    0.436 % of all, by falling difference, ties by (layer, index); always with difference and target above 0 (paper,
    section 3). ``mean-shift`` and ``hybrid`` take those of the largest absolute effect size, which are the same at both
    poles, moved the opposite way. ``residual`` and ``hybrid`` have the difference of the residual stream behind one
    layer.

    Args:
        contrast: Of the pole with the opposite one.
        selector: Method and thresholds.

    Raises:
        NptiError: If there are no such layers, or the method needs the residual stream and it was not measured.
    """
    chosen = choose(selector, contrast.widths, contrast.delta, contrast.target > 0, contrast.effect_size)
    layer, index = neuron_numbers(contrast.widths)
    method = selector.record(contrast.effect_size[chosen])
    gamma = START_GAMMA if selector.method == NPTI else 1.0
    target, delta = contrast.target[chosen], contrast.delta[chosen]
    mean_difference = contrast.mean_difference[chosen]
    neurons = NeuronSet(
        layer=layer[chosen],
        index=index[chosen],
        shift=method.shift(gamma, target, delta, mean_difference),
        target=target,
        delta=delta,
        mean_difference=mean_difference,
        effect_size=contrast.effect_size[chosen],
    )
    caps = selector.caps if selector.method == NPTI else "none"
    residual = _residual(contrast, selector) if selector.method in HAS_RESIDUAL else None
    return PoleRecord(neurons, gamma, method, caps=caps, residual=residual)


def choose(
    selector: Selector,
    widths: tuple[int, ...],
    delta: NDArray[np.float32],
    fires: NDArray[np.bool_],
    effect_size: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Flat numbers of the neurons that a selector chooses, ascending, int64 [chosen].

    Args:
        selector: Method and thresholds.
        widths: Number of neurons of each layer.
        delta: Difference of probabilities of all neurons, float32 [N].
        fires: Whether their target is above 0, bool [N].
        effect_size: Their effect sizes, float32 [N].
    """
    within = selector.layer_range(len(widths))
    inside = np.repeat([layer in within for layer in range(len(widths))], widths)
    if selector.by_effect_size:
        size = np.abs(effect_size)
        eligible = inside & (size > 0)
        least, fewest = selector.min_effect_size, 0
        if least is None:
            least, fewest = np.inf, selector.max_neurons or math.ceil(selector.share * len(size))
    else:
        size = delta
        eligible = inside & (delta > 0) & fires
        least, fewest = selector.min_difference, math.ceil(FLOOR_SHARE * len(size))
    ranked = np.argsort(-size, kind="stable")
    ranked = ranked[eligible[ranked]]
    count = max(int((size[ranked] >= np.float32(least)).sum()), fewest)
    return np.sort(ranked[:count][: selector.max_neurons])


def _residual(contrast: Contrast, selector: Selector) -> ResidualShift:
    """The difference of the residual stream behind the selector's layer."""
    if contrast.stream is None:
        raise NptiError(
            f"The statistics hold no residual stream, which the method {selector.method} is made of: they were "
            "measured by an earlier release, or the model has no single one; measure again, or choose npti or "
            "mean-shift."
        )
    layer = selector.residual_behind(len(contrast.widths))
    return ResidualShift(np.array([layer], np.int16), contrast.stream[layer : layer + 1])


def neuron_numbers(widths: tuple[int, ...]) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """Layer and index of every neuron in flat order, int16 and int32 [N]."""
    layer = np.repeat(np.arange(len(widths), dtype=np.int16), widths)
    index = np.concatenate([np.arange(width, dtype=np.int32) for width in widths])
    return layer, index
