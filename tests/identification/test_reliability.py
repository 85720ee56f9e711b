"""Error bars against resampling: the interval of delta over answers, agreement and overlap of the halves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from npti_export.identification.reliability import (
    chosen_of,
    delta_margin,
    jaccard,
    reliability,
    split_half_reliability,
)
from npti_export.identification.selector import Selector
from npti_export.identification.statistics import MEAN_BITS, NeuronCounts, NeuronStatistics
from npti_export.traits import Pole

NEURONS = 400


def answers_of(rng: np.random.Generator, count: int, p: NDArray[np.float64]) -> list[NDArray[np.bool_]]:
    """Answers of 5 to 40 tokens [tokens, N], each with probabilities of its own, so that its tokens hang together."""
    told = []
    for _ in range(count):
        own = rng.beta(4 * p, 4 * (1 - p))
        told.append(rng.random((int(rng.integers(5, 41)), len(p))) < own)
    return told


def counts_of(told: Sequence[NDArray[np.bool_]]) -> NeuronCounts:
    on = np.array([answer.sum(0) for answer in told])
    lengths = np.array([len(answer) for answer in told])
    nothing = np.zeros_like(on[0])
    squares, crossed = (on**2).sum(0), (on * lengths[:, None]).sum(0)
    return NeuronCounts(
        len(told), int(lengths.sum()), int((lengths**2).sum()), on.sum(0), squares, crossed, nothing, nothing, nothing
    )


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """200 draws of 40 answers: the 95 % interval covers the true delta in 93 to 96.5 % of them, and one that took
    tokens for independent would in far fewer."""
    rng = np.random.default_rng(0)
    high, low = rng.uniform(0.1, 0.9, NEURONS), rng.uniform(0.1, 0.9, NEURONS)
    covered, naive = [], []
    for _ in range(200):
        drawn = [counts_of(answers_of(rng, 40, p)) for p in (high, low)]
        error = np.abs(drawn[0].probability - drawn[1].probability - (high - low))
        covered.append((error <= delta_margin(*drawn)).mean())
        variance = sum(counts.probability * (1 - counts.probability) / counts.tokens for counts in drawn)
        naive.append((error <= 1.96 * np.sqrt(variance)).mean())
    assert 0.93 < np.mean(covered) < 0.965
    assert np.mean(naive) < 0.7


def test_the_interval_is_that_of_the_cluster_bootstrap() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0.1, 0.9, NEURONS)
    told = [answers_of(rng, 60, p) for _ in Pole]
    margin = delta_margin(*(counts_of(of_pole) for of_pole in told))
    on = [np.array([answer.sum(0) for answer in of_pole]) for of_pole in told]
    lengths = [np.array([len(answer) for answer in of_pole]) for of_pole in told]
    deltas = []
    for _ in range(1000):
        drawn = [rng.integers(60, size=60) for _ in Pole]
        high, low = (on[pole][drawn[pole]].sum(0) / lengths[pole][drawn[pole]].sum() for pole in (0, 1))
        deltas.append(high - low)
    ratio = margin / (1.96 * np.std(deltas, axis=0))
    assert abs(np.median(ratio) - 1) < 0.02
    assert np.abs(ratio - 1).max() < 0.15


def test_one_answer_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    p = np.full(3, 0.5)
    one, many = counts_of(answers_of(rng, 1, p)), counts_of(answers_of(rng, 9, p))
    assert np.isinf(delta_margin(one, many)).all()
    assert np.isfinite(delta_margin(many, many)).all()


def statistics_of(told: Sequence[NDArray[np.bool_]]) -> NeuronStatistics:
    halves = (counts_of(told[0::2]), counts_of(told[1::2]))
    return NeuronStatistics((NEURONS,), halves, np.zeros((NEURONS, 1), np.int32))


def test_reliability_predicts_agreement_with_a_new_sample() -> None:
    """The corrected correlation of two halves of 40 answers is that of 40 answers with 40 others, and more answers make
    it larger."""
    rng = np.random.default_rng(2)
    p = rng.uniform(0.2, 0.8, NEURONS)
    shifted = {Pole.HIGH: np.clip(p + rng.normal(0, 0.1, NEURONS), 0.05, 0.95), Pole.LOW: p}

    def drawn(count: int) -> dict[Pole, NeuronStatistics]:
        return {pole: statistics_of(answers_of(rng, count, shifted[pole])) for pole in Pole}

    told, others = [], []
    for _ in range(10):
        one, other = drawn(40), drawn(40)
        told.append(reliability(one, Selector(), 40).split_half)
        deltas = [s[Pole.HIGH].whole.probability - s[Pole.LOW].whole.probability for s in (one, other)]
        others.append(np.corrcoef(*deltas)[0, 1])
    assert abs(np.mean(told) - np.mean(others)) < 0.03
    assert reliability(drawn(200), Selector(), 200).split_half > max(told)


def test_overlap_and_margin_are_of_what_is_chosen() -> None:
    rng = np.random.default_rng(3)
    p = rng.uniform(0.2, 0.8, NEURONS)
    high = np.clip(p + rng.normal(0, 0.15, NEURONS), 0.05, 0.95)
    statistics = {Pole.HIGH: statistics_of(answers_of(rng, 60, high)), Pole.LOW: statistics_of(answers_of(rng, 60, p))}
    told = reliability(statistics, Selector(), 60)
    assert told.questions == 60
    for pole in Pole:
        own, opposite = statistics[pole], statistics[pole.opposite]
        sets = []
        for half in (0, 1):
            delta = own.halves[half].probability - opposite.halves[half].probability
            off = own.halves[half].tokens - own.halves[half].active
            fires = off < np.ceil(0.95 * own.halves[half].tokens)
            sets.append(set(np.flatnonzero((delta.astype(np.float32) >= np.float32(0.1)) & fires)))
        assert told.overlap[pole] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]), abs=1e-6)
        assert 0.2 < told.overlap[pole] < 0.95
        chosen = chosen_of(own.whole, opposite.whole, Selector(), (NEURONS,))
        assert told.margin[pole] == pytest.approx(np.median(delta_margin(own.whole, opposite.whole)[chosen]), abs=1e-6)


def test_the_overlap_by_effect_size_is_that_of_the_halves_quarters() -> None:
    """Six answers a pole whose means alone are told: of each half the quarter of the largest effect size."""
    rng = np.random.default_rng(4)
    means = {pole: rng.normal(0, 0.1, (6, NEURONS)) + shift for pole, shift in zip(Pole, (0.05, 0.0), strict=True)}
    nothing = np.zeros(NEURONS, np.int64)
    statistics, quarters = {}, []
    for pole in Pole:
        halves = []
        for half in (0, 1):
            whole = (means[pole][half::2] * 2**MEAN_BITS).round().astype(np.int64)
            halves.append(NeuronCounts(3, 3, 3, nothing, nothing, nothing, nothing, whole.sum(0), (whole**2).sum(0)))
        statistics[pole] = NeuronStatistics((NEURONS,), (halves[0], halves[1]), np.zeros((NEURONS, 1), np.int32))
    for half in (0, 1):
        high, low = (means[pole][half::2] for pole in Pole)
        d = np.abs(high.mean(0) - low.mean(0)) / np.sqrt((high.var(0, ddof=1) + low.var(0, ddof=1)) / 2)
        quarters.append(set(np.argsort(-d)[: NEURONS // 4]))
    expected = len(quarters[0] & quarters[1]) / len(quarters[0] | quarters[1])
    told = reliability(statistics, Selector("mean-shift"), 6)
    assert told.overlap == {"high": pytest.approx(expected, abs=0.02), "low": pytest.approx(expected, abs=0.02)}


def test_where_nothing_is_chosen_there_is_no_margin() -> None:
    told = answers_of(np.random.default_rng(0), 6, np.full(NEURONS, 0.5))
    same = {pole: statistics_of(told) for pole in Pole}
    found = reliability(same, Selector(), 6)
    assert (found.split_half, found.overlap, found.margin) == (
        0.0,
        {"high": 0.0, "low": 0.0},
        {"high": None, "low": None},
    )
    assert jaccard(np.array([1]), np.array([], dtype=np.int64)) == 0.0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0.0, 0.0, 1.0], [0.0, 1.0, 1.0], 2 / 3),  # r = 1/2
        ([0.1, 0.2, 0.3], [0.2, 0.4, 0.6], 1.0),
        ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1], -1.0),
        ([0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], 0.0),
        ([0.0, 0.0, 1.0], [1.0, 0.0, 0.0], -1.0),  # r = -1/2: 2r / (1 + r) = -2, which no correlation is
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3], 0.0),
    ],
)
def test_split_half_reliability(first: list[float], second: list[float], expected: float) -> None:
    assert split_half_reliability(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-9)
