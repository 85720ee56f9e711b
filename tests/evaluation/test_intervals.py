"""Bootstrap intervals against scipy's and against how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from npti_export.evaluation.intervals import LEVEL, RESAMPLES, Estimate, bootstrap_mean, exponential


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("questions", [2, 20, 92])
def test_the_interval_is_scipys(seed: int, questions: int) -> None:
    values = np.random.default_rng(3).beta(0.5, 0.8, questions)
    estimate = bootstrap_mean(values, seed)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile", rng=seed
    )
    assert estimate.mean == pytest.approx(values.mean(), rel=1e-12)
    assert estimate.low == pytest.approx(theirs.confidence_interval.low, rel=1e-12)
    assert estimate.high == pytest.approx(theirs.confidence_interval.high, rel=1e-12)


@pytest.mark.parametrize("questions", [60, 92])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(questions: int) -> None:
    """Judge scores pile up at both ends: a beta distribution with the mean 5/13."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(400):
        estimate = bootstrap_mean(rng.beta(0.5, 0.8, questions), seed)
        held += estimate.low <= 5 / 13 <= estimate.high
    assert 0.92 <= held / 400 <= 0.975


def test_the_seed_decides_the_interval_and_not_the_mean() -> None:
    values = np.random.default_rng(1).normal(size=30)
    assert bootstrap_mean(values, 4) == bootstrap_mean(values, 4)
    one, other = bootstrap_mean(values, 4), bootstrap_mean(values, 5)
    assert one.mean == other.mean
    assert (one.low, one.high) != (other.low, other.high)


def test_one_question_has_no_width() -> None:
    assert bootstrap_mean(np.array([0.25])) == Estimate(0.25, 0.25, 0.25)


def test_a_ratio_is_the_exponential_of_a_mean_logarithm() -> None:
    logarithms = np.log(np.array([1.0, 2.0, 4.0]))
    ratio = exponential(bootstrap_mean(logarithms))
    assert ratio.mean == pytest.approx(2.0, rel=1e-12)  # the geometric mean
    assert 1.0 <= ratio.low < 2.0 < ratio.high <= 4.0


def test_how_an_estimate_is_written() -> None:
    assert str(Estimate(0.125, -0.5, 1.0)) == "+0.12 [-0.50, +1.00]"
