"""The selection rule against a slow plain-Python version, and its numbers against known ones."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npti_export.adapter.records import Method
from npti_export.identification.select import FLOOR_SHARE, choose, neuron_numbers, select
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


# Few values, so that ties and the threshold itself occur often; exact in float32 but for .1, which is compared as such.
DELTAS = st.sampled_from([-0.5, 0.0, 0.015625, 0.0625, float(np.float32(0.1)), 0.125, 0.5])
TARGETS = st.sampled_from([-0.25, 0.0, 0.125, 2.0])


@settings(deadline=None)
@given(st.lists(st.tuples(DELTAS, TARGETS), min_size=1, max_size=700), st.sampled_from([0.0, 0.1, 0.125, 0.9]))
def test_the_rule(neurons: list[tuple[float, float]], min_difference: float) -> None:
    delta, target = (np.array(column, dtype=np.float32) for column in zip(*neurons, strict=True))
    chosen = choose(delta, target, min_difference)
    expected = slow_choose(delta.tolist(), target.tolist(), float(np.float32(min_difference)))
    assert chosen.tolist() == expected


@pytest.mark.parametrize(("neurons", "floor"), [(1, 1), (229, 1), (230, 2), (1000, 5), (458_752, 2001)])
def test_the_floor(neurons: int, floor: int) -> None:
    assert FLOOR_SHARE == 0.00436
    delta = np.linspace(0.09, 0.01, neurons, dtype=np.float32)
    assert choose(delta, np.ones(neurons, np.float32), 0.1).tolist() == list(range(floor))
    assert choose(delta, np.zeros(neurons, np.float32), 0.1).tolist() == []
    assert choose(-delta, np.ones(neurons, np.float32), 0.1).tolist() == []


def test_ties_go_by_layer_and_index() -> None:
    delta = np.full(1000, 0.05, np.float32)
    target = np.ones(1000, np.float32)
    target[1] = 0.0
    assert choose(delta, target, 0.1).tolist() == [0, 2, 3, 4, 5]


def counted(active: list[int], tokens: int, means: list[list[float]]) -> NeuronStatistics:
    """Statistics of two layers of widths 2 and 1, active ones at 0.5, the others at −0.1."""
    edges = bin_edges()
    histogram = np.zeros((3, len(edges) + 1), np.int32)
    histogram[np.arange(3), np.searchsorted(edges, 0.5, side="right")] = active
    histogram[np.arange(3), np.searchsorted(edges, -0.1, side="right")] = tokens - np.array(active)
    by_answer = (np.array(means) * 2**MEAN_BITS).astype(np.int64)
    total = (np.mean(means, axis=0) * tokens * 2**TOTAL_BITS).astype(np.int64)
    nothing = np.zeros(3, np.int64)
    sums = (np.array(active), nothing, nothing, total, by_answer.sum(0), (by_answer**2).sum(0))
    halves = (NeuronCounts(len(means), tokens, 0, *sums), NeuronCounts(0, 0, 0, *[nothing] * 6))
    return NeuronStatistics((2, 1), halves, histogram)


def test_a_threshold_met_exactly_is_met() -> None:
    """6 of 10 minus 5 of 10 is .09999999999999998 in float64."""
    pole = counted([6, 6, 6], 10, [[0.0] * 3, [1.0] * 3])
    opposite = counted([5, 6, 5], 10, [[0.0] * 3, [1.0] * 3])
    chosen = select(pole, opposite, Method(), 1.4)
    assert list(zip(chosen.layer.tolist(), chosen.index.tolist(), strict=True)) == [(0, 0), (1, 0)]
    assert chosen.delta.tolist() == [np.float32(0.1)] * 2


def test_what_is_written_of_each_neuron() -> None:
    pole = counted([10, 0, 8], 10, [[0.5, 0.0, 0.25], [0.75, 0.0, 0.75]])
    opposite = counted([2, 0, 9], 10, [[0.25, 0.0, 0.5], [0.5, 0.0, 0.5]])
    gamma = 1.4
    chosen = select(pole, opposite, Method(), gamma)
    assert (chosen.layer.tolist(), chosen.index.tolist()) == ([0], [0])
    assert (chosen.layer.dtype, chosen.index.dtype, chosen.shift.dtype) == (np.int16, np.int32, np.float32)
    assert chosen.delta[0] == np.float32(0.8)
    assert chosen.target[0] == pytest.approx(0.5, abs=0.005)
    assert chosen.shift[0] == pytest.approx(gamma * chosen.target[0] / (1 + math.exp(-10 * (0.8 - 0.15))), rel=1e-6)
    assert chosen.mean_difference is not None
    assert chosen.mean_difference[0] == 0.25
    # Means .625 and .375, both with the variance .125² · 2 = .03125: d = .25 / sqrt(.03125)
    assert chosen.effect_size is not None
    assert chosen.effect_size[0] == pytest.approx(math.sqrt(2.0), rel=1e-6)


def test_neurons_are_numbered_layer_by_layer() -> None:
    layer, index = neuron_numbers((3, 2))
    assert layer.tolist() == [0, 0, 0, 1, 1]
    assert index.tolist() == [0, 1, 2, 0, 1]
