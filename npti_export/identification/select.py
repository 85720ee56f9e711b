"""Select: statistics of both poles → the neurons of each pole, and the residual where the method has one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npti_export.adapter.base_model import LayerNeurons
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import HAS_RESIDUAL, NPTI, PoleRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.identification.selector import Selector
from npti_export.identification.statistics import NeuronCounts, NeuronStatistics, considered

FLOOR_SHARE = 0.00436
"""Never fewer neurons a pole by delta than this share of all: the paper's 2,000 of Llama-3-8B's 458,752."""
START_GAMMA = 1.4
"""The paper's dose of ``npti``, until calibration has found one; the other methods start at 1."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """How one pole differs from the other, for all N neurons and for the residual stream behind every layer.

    Args:
        layers: How many neurons each layer has; they add up to N.
        delta: Probability minus that of the opposite pole, float32 [N].
        target: Percentile of the pole's own activations, float32 [N].
        mean_difference: Mean activation over tokens minus that of the opposite pole, float32 [N].
        effect_size: Cohen's d of the answers' mean activations, float32 [N]; 0 where they do not vary.
        stream: Mean residual stream minus that of the opposite pole, float32 [layers, hidden]; None if not measured.

    All numbers of a neuron are 0 where its expert got too few tokens, so it is not chosen.
    """

    layers: tuple[LayerNeurons, ...]
    delta: NDArray[np.float32]
    target: NDArray[np.float32]
    mean_difference: NDArray[np.float32]
    effect_size: NDArray[np.float32]
    stream: NDArray[np.float32] | None

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of neurons of each layer."""
        return tuple(layer.total for layer in self.layers)


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
    counted = considered(pole.whole, opposite.whole)
    return Contrast(
        pole.layers,
        np.where(counted, delta_of(pole.whole, opposite.whole), np.float32(0)),
        np.where(counted, pole.percentile(percentile), np.float32(0)),
        np.where(counted, (pole.whole.mean - opposite.whole.mean).astype(np.float32), np.float32(0)),
        np.where(counted, effect_size_of(pole.whole, opposite.whole), np.float32(0)),
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

    ``npti``, ``residual`` and ``fitted`` take all neurons whose probability is higher by ``min_difference``, and never
    fewer than 0.436 % of all, by falling difference, ties by (layer, index); always with difference and target above 0
    (paper, section 3). ``mean-shift`` and ``hybrid`` take those of the largest absolute effect size, which are the same
    at both poles, moved the opposite way. ``residual`` and ``hybrid`` have the difference of the residual stream behind
    one layer, ``fitted`` a share of it behind several, from which it is still to be fitted.

    Args:
        contrast: Of the pole with the opposite one.
        selector: Method and thresholds.

    Raises:
        NptiError: If there are no such layers, or the method needs the residual stream and it was not measured.
    """
    chosen = choose(selector, contrast.widths, contrast.delta, contrast.target > 0, contrast.effect_size)
    layer, expert, index = neuron_numbers(contrast.layers)
    method = selector.record(contrast.effect_size[chosen])
    gamma = START_GAMMA if selector.method == NPTI else 1.0
    target, delta = contrast.target[chosen], contrast.delta[chosen]
    mean_difference = contrast.mean_difference[chosen]
    neurons = NeuronSet(
        layer=layer[chosen],
        index=index[chosen],
        expert=expert[chosen] if any(of_layer.experts for of_layer in contrast.layers) else None,
        shift=method.shift(gamma, target, delta, mean_difference),
        target=target,
        delta=delta,
        mean_difference=mean_difference,
        effect_size=contrast.effect_size[chosen],
    )
    caps = selector.caps if selector.method == NPTI else "none"
    residual = _residual(contrast, selector) if selector.method in HAS_RESIDUAL else None
    return PoleRecord(neurons, gamma, method, caps=caps, positions=selector.steered_positions, residual=residual)


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
    """The difference of the residual stream behind the selector's layers, each its share of it."""
    if contrast.stream is None:
        raise NptiError(
            f"The statistics hold no residual stream, which the method {selector.method} is made of: they were "
            "measured by an earlier release, or the model has no single one; measure again, or choose npti or "
            "mean-shift."
        )
    layers = selector.residual_behind(len(contrast.widths))
    return ResidualShift(np.array(layers, np.int16), contrast.stream[layers] / np.float32(len(layers)))


def neuron_numbers(
    layers: Sequence[LayerNeurons],
) -> tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.int32]]:
    """Layer, expert and index of every neuron in flat order, int16, int16 and int32 [N]; -1 for no routed expert.

    >>> _, expert, index = neuron_numbers([LayerNeurons(experts=2, per_expert=2, shared=3)])
    >>> expert.tolist(), index.tolist()
    ([-1, -1, -1, 0, 0, 1, 1], [0, 1, 2, 0, 1, 0, 1])
    """
    layer = np.repeat(np.arange(len(layers), dtype=np.int16), [of_layer.total for of_layer in layers])
    expert, index = [], []
    for of_layer in layers:
        beside = of_layer.dense + of_layer.shared
        expert += [np.full(beside, -1), np.repeat(np.arange(of_layer.experts), of_layer.per_expert)]
        index += [np.arange(beside), np.tile(np.arange(of_layer.per_expert), of_layer.experts)]
    return layer, np.concatenate(expert).astype(np.int16), np.concatenate(index).astype(np.int32)
