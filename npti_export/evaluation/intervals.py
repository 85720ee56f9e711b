"""Bootstrap intervals over questions, paired where two conditions answered the same ones.

Questions are what is resampled: they are a sample of what could be asked, while greedy answers and a judge's scores of
them are fixed. The plain percentile interval is taken (2,000 resamples, 2.5 and 97.5 % with linear interpolation): it
stays on the judge's scale and goes over to a ratio of perplexities by exp. With 60 and 92 questions it held the truth
in 94 to 96 % of 1,500 trials on normal and on U-shaped data, in 92 to 94 % on lognormal data; with 20 in 93 and 89 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def bootstrap_mean(values: NDArray[np.float64], seed: int = 0) -> Estimate:
    """The mean of values, one a question, with its percentile bootstrap interval of 95 %.

    Args:
        values: Float64 [questions], at least one; for a paired difference, the differences.
        seed: Decides the resamples.

    >>> bootstrap_mean(np.array([0.5, 0.5, 0.5]))
    Estimate(mean=0.5, low=0.5, high=0.5)
    """
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values.mean()), float(low), float(high))


def exponential(estimate: Estimate) -> Estimate:
    """The estimate of a ratio from that of a mean logarithm."""
    return Estimate(*(float(np.exp(x)) for x in (estimate.mean, estimate.low, estimate.high)))
