"""Agreement of judges, against a published worked example and independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from npti_export.evaluation.judges.agreement import krippendorff_alpha, spearman

NAN = float("nan")
# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", part C: four observers, twelve units, some missing.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


def alpha_by_pairs(ratings: np.ndarray) -> float:
    """Straight from the definition: every ordered pair of values, within units and over all."""
    units = [[value for value in unit if not np.isnan(value)] for unit in ratings.T]
    units = [unit for unit in units if len(unit) >= 2]
    values = [value for unit in units for value in unit]
    n = len(values)
    observed = sum(sum((a - b) ** 2 for a in unit for b in unit) / (len(unit) - 1) for unit in units) / n
    expected = sum((a - b) ** 2 for a in values for b in values) / (n * (n - 1))
    return 1 - observed / expected


def test_alpha_is_that_of_the_published_example() -> None:
    assert round(krippendorff_alpha(*PUBLISHED), 3) == 0.849


@pytest.mark.parametrize("judges", [2, 3])
def test_alpha_is_that_of_its_definition(judges: int) -> None:
    rng = np.random.default_rng(judges)
    ratings = rng.integers(1, 6, (1, 40)) + rng.normal(0, 0.8, (judges, 40))
    ratings[rng.random(ratings.shape) < 0.2] = NAN
    alpha = krippendorff_alpha(*ratings)
    assert 0.3 < alpha < 0.9
    assert alpha == pytest.approx(alpha_by_pairs(ratings))


def test_alpha_counts_a_kinder_judge_as_disagreeing_where_a_correlation_does_not() -> None:
    one = np.array([1.0, 2.0, 3.0, 4.0])
    assert krippendorff_alpha(one, one) == 1.0
    assert krippendorff_alpha(one, one + 1) < 0.8
    assert spearman(one, one + 1) == pytest.approx(1.0)
    assert krippendorff_alpha(one, one[::-1]) < 0


def test_where_nothing_can_be_agreed_on_there_is_no_figure() -> None:
    same, none, one = np.full(3, 0.1), np.full(3, NAN), np.array([1.0, NAN, NAN])
    ratings = np.array([1.0, 2.0, 3.0])
    for first, second in ((same, same), (none, ratings), (one, none), (np.array([]), np.array([]))):
        assert np.isnan(krippendorff_alpha(first, second))
    for first, second in ((same, ratings), (ratings, same), (none, ratings), (one, ratings)):
        assert np.isnan(spearman(first, second))


def test_spearman_is_scipys_over_what_both_rated() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(1, 6, 60).astype(float)
    second = first + rng.normal(0, 1, 60)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    holed = first.copy()
    holed[:20] = NAN
    assert spearman(holed, second) == pytest.approx(stats.spearmanr(first[20:], second[20:]).statistic)
