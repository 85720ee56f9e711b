"""How far judges agree: Krippendorff's alpha for interval data, and Spearman's rank correlation.

The one maintained package for alpha is under the GPL, which this package cannot depend on; it is short enough.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def krippendorff_alpha(*ratings: NDArray[np.float64]) -> float:
    """Krippendorff's alpha with the interval metric: 1 is agreement, 0 is chance.

    Unlike a correlation it also counts a judge that is always a point kinder as disagreeing. (Krippendorff 2011,
    "Computing Krippendorff's Alpha-Reliability".)

    Args:
        ratings: One array a judge, at least two, float64 [answers] on one scale; nan where there is no rating.

    Returns:
        Alpha; nan where it is not defined: no answer was rated twice, or all ratings are the same.

    >>> round(krippendorff_alpha(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, 5.0])), 3)
    0.937
    """
    table = np.stack(ratings)
    table = table[:, (~np.isnan(table)).sum(axis=0) >= 2]
    count = (~np.isnan(table)).sum(axis=0)
    if not count.sum():
        return float("nan")
    # The sum of squared differences of all ordered pairs of m values is 2 m times that from their mean.
    within = np.nansum((table - np.nanmean(table, axis=0)) ** 2, axis=0)
    observed = (count / (count - 1) * within).sum() / count.sum()
    values = table[~np.isnan(table)]
    expected = ((values - values.mean()) ** 2).sum() / (len(values) - 1)
    # All the same but for rounding: there is nothing to agree on.
    if np.ptp(values) <= 1e-12 * max(1.0, np.abs(values).max()):
        return float("nan")
    return float(1 - observed / expected)


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's rank correlation of two judges: whether they put the answers in the same order.

    Args:
        first: Float64 [answers], nan where there is no rating.
        second: The same answers, rated by the other.

    Returns:
        The correlation; nan where one rates all the same, or fewer than two answers have both ratings.

    >>> spearman(np.array([1.0, 2.0, 5.0, np.nan]), np.array([0.1, 0.2, 0.3, 0.4]))
    1.0
    """
    both = ~np.isnan(first) & ~np.isnan(second)
    if both.sum() < 2 or not np.ptp(first[both]) or not np.ptp(second[both]):
        return float("nan")
    return float(stats.spearmanr(first[both], second[both]).statistic)
