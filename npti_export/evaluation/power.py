"""How many questions a difference needs to be found: the power of the paired t test.

Questions are the sample: the same ones under both methods, one difference each. The bootstrap intervals of the tables
and the t test agree on the width of a mean of a few dozen differences.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

LEVEL = 0.05
"""Two-sided."""
POWER = 0.8
MOST = 100_000


def power_of(questions: int, difference: float, deviation: float, level: float = LEVEL) -> float:
    """Probability that a paired t test finds a difference.

    Args:
        questions: Asked under both methods, at least two.
        difference: True mean difference.
        deviation: Standard deviation of the differences over questions.
        level: Of the two-sided test.

    >>> round(power_of(34, 0.5, 1.0), 3)
    0.808
    """
    beyond = stats.t.ppf(1 - level / 2, questions - 1)
    shift = abs(difference) / deviation * np.sqrt(questions)
    found = stats.nct.sf(beyond, questions - 1, shift) + stats.nct.cdf(-beyond, questions - 1, shift)
    return float(found)


def questions_needed(difference: float, deviation: float, power: float = POWER, level: float = LEVEL) -> int:
    """Fewest questions at which a paired t test finds a difference with that power.

    Args:
        difference: True mean difference, not 0.
        deviation: Standard deviation of the differences over questions.
        power: Wanted.
        level: Of the two-sided test.

    >>> questions_needed(0.5, 1.0), questions_needed(0.1, 0.0)
    (34, 2)
    """
    if deviation == 0.0:
        return 2
    low, high = 1, 2
    while high < MOST and power_of(high, difference, deviation, level) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle, difference, deviation, level) >= power else (middle, high)
    return high
