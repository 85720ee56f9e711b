"""The selection rules against slow plain-Python versions, and their numbers against known ones."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npti_export.adapter.base_model import LayerNeurons
from npti_export.errors import NptiError
from npti_export.identification.select import FLOOR_SHARE, Contrast, choose, contrast_of, neuron_numbers, select
from npti_export.identification.selector import Selector, layers_to_try, ways_to_try
from npti_export.identification.statistics import MEAN_BITS, TOTAL_BITS, NeuronCounts, NeuronStatistics, bin_edges


def slow_choose(delta: list[float], target: list[float], min_difference: float) -> list[int]:
    """The rule as one would read it out: rank, leave out what is not above 0, take enough, and the floor at least."""
    order = sorted(range(len(delta)), key=lambda at: (-delta[at], at))
    chosen: list[int] = []
    for at in order:
        if not (delta[at] > 0 and target[at] > 0):
            continue
        below_floor = len(chosen) < math.ceil(Fraction(436, 100_000) * len(delta))
        if delta[at] >= min_difference or below_floor:
            chosen.append(at)
    return sorted(chosen)


def by_delta(delta: np.ndarray, target: np.ndarray, selector: Selector) -> list[int]:
    return choose(selector, (len(delta),), delta, target > 0, np.zeros_like(delta)).tolist()


# Few values, so that ties and the threshold itself occur often; exact in float32 but for .1, which is compared as such.
DELTAS = st.sampled_from([-0.5, 0.0, 0.015625, 0.0625, float(np.float32(0.1)), 0.125, 0.5])
TARGETS = st.sampled_from([-0.25, 0.0, 0.125, 2.0])


@settings(deadline=None)
@given(st.lists(st.tuples(DELTAS, TARGETS), min_size=1, max_size=700), st.sampled_from([0.0, 0.1, 0.125, 0.9]))
def test_the_rule_by_delta(neurons: list[tuple[float, float]], min_difference: float) -> None:
    delta, target = (np.array(column, dtype=np.float32) for column in zip(*neurons, strict=True))
    expected = slow_choose(delta.tolist(), target.tolist(), float(np.float32(min_difference)))
    for method in ("npti", "residual"):
        assert by_delta(delta, target, Selector(method, min_difference)) == expected


@settings(deadline=None)
@given(
    st.lists(DELTAS, min_size=4, max_size=80),
    st.sampled_from([None, 0.0625, 0.1, 0.3, 0.9]),
    st.sampled_from([None, 1, 5, 200]),
    st.sampled_from([0.25, 0.5]),
)
def test_the_rule_by_effect_size(sizes: list[float], least: float | None, most: int | None, share: float) -> None:
    """The largest in size, whichever way they point; a quarter of all unless a threshold or a number is given."""
    effect_size = np.array(sizes, dtype=np.float32)
    order = sorted((at for at in range(len(sizes)) if sizes[at] != 0), key=lambda at: (-abs(sizes[at]), at))
    if least is not None:
        order = [at for at in order if np.float32(abs(sizes[at])) >= np.float32(least)]
    elif most is None:
        order = order[: math.ceil(share * len(sizes))]
    expected = sorted(order if most is None else order[:most])
    nothing = np.zeros(len(sizes), np.float32)
    for method in ("mean-shift", "hybrid"):
        selector = Selector(method, min_effect_size=least, max_neurons=most, share=share)
        chosen = choose(selector, (len(sizes),), nothing, np.zeros(len(sizes), bool), effect_size)
        assert chosen.tolist() == expected


@pytest.mark.parametrize(("neurons", "floor"), [(1, 1), (229, 1), (230, 2), (1000, 5), (458_752, 2001)])
def test_the_floor(neurons: int, floor: int) -> None:
    assert FLOOR_SHARE == 0.00436
    delta = np.linspace(0.09, 0.01, neurons, dtype=np.float32)
    ones = np.ones(neurons, np.float32)
    assert by_delta(delta, ones, Selector()) == list(range(floor))
    assert by_delta(delta, 0 * ones, Selector()) == []
    assert by_delta(-delta, ones, Selector()) == []
    assert by_delta(delta, ones, Selector(max_neurons=1)) == [0]


def test_ties_go_by_layer_and_index() -> None:
    delta = np.full(1000, 0.05, np.float32)
    target = np.ones(1000, np.float32)
    target[1] = 0.0
    assert by_delta(delta, target, Selector()) == [0, 2, 3, 4, 5]


def test_only_neurons_of_the_layers_asked_for() -> None:
    widths = (3, 2, 4)
    strong = np.arange(1.0, 0.1, -0.1, dtype=np.float32)
    fires = np.ones(9, bool)
    for layers, expected in (((0, 0), [0, 1, 2]), ((1, 2), [3, 4, 5, 6, 7, 8]), ((1, 1), [3, 4]), (None, [*range(9)])):
        assert choose(Selector(layers=layers), widths, strong, fires, 0 * strong).tolist() == expected
        by_effect = Selector("mean-shift", min_effect_size=0.1, layers=layers)
        assert choose(by_effect, widths, 0 * strong, fires, -strong).tolist() == expected
    for layers in ((2, 3), (2, 1)):
        with pytest.raises(NptiError, match=rf"--layers is {layers[0]}-{layers[1]}; the model has the layers 0 to 2"):
            choose(Selector(layers=layers), widths, strong, fires, strong)


def counted(active: list[int], tokens: int, means: list[list[float]], stream: float = 0.0) -> NeuronStatistics:
    """Statistics of two layers of widths 2 and 1, active ones at 0.5, the others at −0.1, and of a residual stream."""
    edges = bin_edges()
    histogram = np.zeros((3, len(edges) + 1), np.int32)
    histogram[np.arange(3), np.searchsorted(edges, 0.5, side="right")] = active
    histogram[np.arange(3), np.searchsorted(edges, -0.1, side="right")] = tokens - np.array(active)
    by_answer = (np.array(means) * 2**MEAN_BITS).astype(np.int64)
    total = (np.mean(means, axis=0) * tokens * 2**TOTAL_BITS).astype(np.int64)
    nothing = np.zeros(3, np.int64)
    sums = (np.array(active), nothing, nothing, total, by_answer.sum(0), (by_answer**2).sum(0))
    halves = (NeuronCounts(len(means), tokens, 0, *sums), NeuronCounts(0, 0, 0, *[nothing] * 6))
    of_stream = np.array([[stream, 0, 1], [-2 * stream, 3, 0]]) * tokens * 2**TOTAL_BITS
    return NeuronStatistics((2, 1), halves, histogram, of_stream.astype(np.int64))


def test_a_threshold_met_exactly_is_met() -> None:
    """6 of 10 minus 5 of 10 is .09999999999999998 in float64."""
    pole = counted([6, 6, 6], 10, [[0.0] * 3, [1.0] * 3])
    opposite = counted([5, 6, 5], 10, [[0.0] * 3, [1.0] * 3])
    chosen = select(contrast_of(pole, opposite, 95.0), Selector()).neurons
    assert list(zip(chosen.layer.tolist(), chosen.index.tolist(), strict=True)) == [(0, 0), (1, 0)]
    assert chosen.delta.tolist() == [np.float32(0.1)] * 2


@pytest.fixture
def contrast() -> Contrast:
    pole = counted([10, 0, 8], 10, [[0.5, 0.0, 0.25], [0.75, 0.0, 0.75]], stream=1.5)
    opposite = counted([2, 0, 9], 10, [[0.25, 0.0, 0.5], [0.5, 0.0, 0.75]], stream=0.25)
    return contrast_of(pole, opposite, 95.0)


def test_what_is_written_of_each_neuron(contrast: Contrast) -> None:
    record = select(contrast, Selector())
    chosen = record.neurons
    assert (record.gamma, record.caps, record.residual, record.calibrated) == (1.4, "opposite", None, False)
    assert (chosen.layer.tolist(), chosen.index.tolist()) == ([0], [0])
    assert (chosen.layer.dtype, chosen.index.dtype, chosen.shift.dtype) == (np.int16, np.int32, np.float32)
    assert chosen.delta[0] == np.float32(0.8)
    assert chosen.target[0] == pytest.approx(0.5, abs=0.005)
    assert chosen.shift[0] == pytest.approx(1.4 * chosen.target[0] / (1 + math.exp(-10 * (0.8 - 0.15))), rel=1e-6)
    assert chosen.mean_difference is not None
    assert chosen.mean_difference[0] == 0.25
    # Means .625 and .375, both with the variance .125² · 2 = .03125: d = .25 / sqrt(.03125)
    assert chosen.effect_size is not None
    assert chosen.effect_size[0] == pytest.approx(math.sqrt(2.0), rel=1e-6)
    assert select(contrast, Selector(caps="none")).caps == "none"


def test_mean_shift_moves_by_the_mean_difference_in_either_direction(contrast: Contrast) -> None:
    record = select(contrast, Selector("mean-shift", share=0.6))
    assert (record.gamma, record.caps, record.residual) == (1.0, "none", None)
    chosen = record.neurons
    assert (chosen.layer.tolist(), chosen.index.tolist()) == ([0, 1], [0, 0])
    # Neuron 1:0: means .5 and .625, variances .125 and .03125: d = −.125 / sqrt(.078125)
    assert chosen.shift.tolist() == [0.25, -0.125]
    assert chosen.effect_size is not None
    assert chosen.effect_size.tolist() == pytest.approx([math.sqrt(2.0), -0.125 / math.sqrt(0.078125)], rel=1e-6)
    assert record.method.min_effect_size == 0.4472  # of .44721…, rounded down
    one = select(contrast, Selector("mean-shift"))  # a quarter of three is one
    assert one.neurons.index.tolist() == [0]
    assert one.method.min_effect_size == 1.4142
    assert select(contrast, Selector("mean-shift", min_effect_size=0.5)).method.min_effect_size == 0.5


def test_the_residual_is_the_difference_of_the_means(contrast: Contrast) -> None:
    """Layer 0: 1.5 − 0.25 in the first place; layer 1: −3 + 0.5; what both poles have alike falls out."""
    for method, shift in (("residual", [0.0]), ("hybrid", [0.25])):
        for layer, expected in ((0, [1.25, 0.0, 0.0]), (1, [-2.5, 0.0, 0.0])):
            record = select(contrast, Selector(method, residual_layers=(layer,)))
            assert (record.gamma, record.caps) == (1.0, "none")
            assert record.residual is not None
            assert record.residual.layer.tolist() == [layer]
            assert record.residual.vector.tolist() == [expected]
            assert record.residual.vector.dtype == np.float32
            assert record.neurons.shift.tolist() == shift
    assert select(contrast, Selector("residual", layers=(1, 1))).residual.layer.tolist() == [1]


def test_vectors_start_from_a_share_of_the_difference_behind_each_layer(contrast: Contrast) -> None:
    record = select(contrast, Selector("fitted"))
    assert record.residual is not None
    assert record.residual.layer.tolist() == [0, 1]
    assert record.residual.vector.tolist() == [[0.625, 0.0, 0.0], [-1.25, 0.0, 0.0]]
    assert (record.method.name, record.caps, record.neurons.shift.tolist()) == ("fitted", "none", [0.0])
    assert record.neurons == select(contrast, Selector("residual")).neurons


def test_without_a_residual_stream_its_methods_say_so() -> None:
    old = counted([6, 6, 6], 10, [[0.0] * 3, [1.0] * 3])
    old = NeuronStatistics(old.widths, old.halves, old.histogram)
    opposite = counted([5, 6, 5], 10, [[0.0] * 3, [1.0] * 3])
    for pair in ((old, opposite), (opposite, old)):
        contrast = contrast_of(*pair, 95.0)
        assert contrast.stream is None
        for method in ("residual", "hybrid", "fitted"):
            with pytest.raises(NptiError, match=f"hold no residual stream, which the method {method} is made of: they"):
                select(contrast, Selector(method))
    assert len(select(contrast_of(old, opposite, 95.0), Selector()).neurons) == 2


def test_the_layer_of_a_residual_lies_in_the_range() -> None:
    assert [Selector("residual").residual_behind(layers) for layers in (1, 4, 6, 32)] == [[0], [1], [2], [10]]
    assert Selector("residual", layers=(8, 13)).residual_behind(32) == [10]
    assert Selector("residual", residual_layers=(3,)).residual_behind(32) == [3]
    for within in (range(1), range(5, 7), range(3, 30), range(80)):
        tried = layers_to_try(within)
        assert len(tried) == min(4, len(within))
        assert tried == sorted(set(tried) & set(within))


def test_auto_tries_every_method_and_the_others_their_own() -> None:
    def methods(wanted: Selector, **options: bool) -> list[str]:
        return [way.method for ways in ways_to_try(wanted, 8, **options) for way in ways]

    of_four_layers = ["residual"] * 4 + ["hybrid"] * 4 + ["fitted"]  # the last behind all of them at once
    assert methods(Selector("auto")) == ["npti"] * 3 + ["mean-shift"] * 2 + of_four_layers
    assert methods(Selector("auto"), has_stream=False) == ["npti"] * 3 + ["mean-shift"] * 2
    assert methods(Selector("residual"), has_stream=False) == ["residual"] * 4  # which then says why it cannot
    assert ways_to_try(Selector("mean-shift", max_neurons=9), 8) == [[Selector("mean-shift", max_neurons=9)]]
    # The poles of an adapter must agree on positions: auto tries all at those of fitted vectors.
    assert {way.steered_positions for ways in ways_to_try(Selector("auto"), 8) for way in ways} == {
        "last_prompt+generated"
    }
    assert [way.steered_positions for way in (Selector(), Selector("hybrid"), Selector("fitted"))] == [
        "generated",
        "generated",
        "last_prompt+generated",
    ]
    assert Selector("fitted", positions="generated").steered_positions == "generated"
    assert methods(Selector("hybrid", layers=(2, 3))) == ["hybrid"] * 2
    thresholds = [way.min_difference for [way] in ways_to_try(Selector(min_difference=0.6), 8)]
    assert thresholds == [0.6, 0.6, 1.0]
    assert len(ways_to_try(Selector(min_difference=0.0), 8)) == 2


def test_neurons_are_numbered_layer_by_layer_and_expert_by_expert() -> None:
    layer, expert, index = neuron_numbers([LayerNeurons(3), LayerNeurons(0, 2, 2, 1), LayerNeurons(2)])
    assert layer.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2]
    assert expert.tolist() == [-1, -1, -1, -1, 0, 0, 1, 1, -1, -1]
    assert index.tolist() == [0, 1, 2, 0, 0, 1, 0, 1, 0, 1]
