"""What is added up over an evaluation: the sum of the poles, how often the adapter wins, what a difference needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npti_export.evaluation.compare import Scores
from npti_export.evaluation.intervals import Estimate, bootstrap_mean
from npti_export.evaluation.methods import ADAPTER
from npti_export.evaluation.power import questions_needed
from npti_export.evaluation.results import Evaluation, PersonalityResult
from npti_export.traits import Pole

PUBLISHED_SCALE = (1.0, 5.0)


@dataclass(frozen=True)
class SumOfPoles:
    """As published: the mean score of the high pole and that of the low one turned round, at most 10.

    Args:
        total: With its interval over questions, which both poles share.
        variance: Of the scores over questions, mean of the two poles.
    """

    total: Estimate
    variance: float


@dataclass(frozen=True)
class Wins:
    """How often the adapter has the larger effect than another method.

    Args:
        more: At how many poles.
        surely: At how many of these the interval of the difference lies above 0.
        of: How many poles there are.
    """

    more: int
    surely: int
    of: int


def scores_in(evaluation: Evaluation, result: PersonalityResult, method: str) -> Scores | None:
    """The main judge's scores drawn to 1 to 5, float64 [questions], nan where it failed; None where it was not asked.

    Args:
        evaluation: Holds the judge's scale.
        result: One personality of it.
        method: The method.
    """
    found = result.method(method)
    rating = None if found is None else found.rating(evaluation.judge.name)
    if rating is None:
        return None
    low, high = evaluation.judge.lowest, evaluation.judge.highest
    scores = np.array([np.nan if score is None else score for score in rating.scores], dtype=np.float64)
    least, most = PUBLISHED_SCALE
    return np.asarray(least + (most - least) * (scores - low) / (high - low))


def sum_of_poles(evaluation: Evaluation, trait: str, method: str) -> SumOfPoles | None:
    """The sum of both poles' mean scores; None where a pole is missing or the judge failed at all of its answers.

    Args:
        evaluation: The evaluation.
        trait: The trait.
        method: The method.
    """
    of_poles = []
    for pole in Pole:
        result = evaluation.of(trait, pole)
        scores = None if result is None else scores_in(evaluation, result, method)
        if scores is None:
            return None
        of_poles.append(scores if pole is Pole.HIGH else sum(PUBLISHED_SCALE) - scores)
    both = ~np.isnan(of_poles[0]) & ~np.isnan(of_poles[1])
    if both.sum() < len(of_poles):
        return None
    total = bootstrap_mean((of_poles[0] + of_poles[1])[both], evaluation.settings.seed)
    variance = float(np.mean([scores[both].var(ddof=1) for scores in of_poles]))
    return SumOfPoles(total, variance)


def wins_against(evaluation: Evaluation, method: str, matched: bool = False) -> Wins:
    """At how many poles the adapter's effect is the larger one.

    Args:
        evaluation: The evaluation.
        method: Whom it is held against.
        matched: Whether at equal cost.
    """
    found = [
        difference.effect
        for result in evaluation.personalities
        for difference in result.differences
        if (difference.method, difference.against, difference.matched) == (ADAPTER, method, matched)
    ]
    return Wins(sum(e.mean > 0 for e in found), sum(e.low > 0 for e in found), len(found))


def deviation_of_differences(evaluation: Evaluation, method: str) -> float | None:
    """Standard deviation over questions of adapter minus method, on the main judge's scale; None where there is none.

    The root mean square over the poles.

    Args:
        evaluation: The evaluation.
        method: The other method.
    """
    variances = []
    for result in evaluation.personalities:
        one, other = (scores_in(evaluation, result, name) for name in (ADAPTER, method))
        if one is None or other is None:
            continue
        differences = (one - other)[~np.isnan(one - other)]
        if differences.size > 1:
            variances.append(differences.var(ddof=1))
    drawn = (PUBLISHED_SCALE[1] - PUBLISHED_SCALE[0]) / (evaluation.judge.highest - evaluation.judge.lowest)
    return float(np.sqrt(np.mean(variances))) / drawn if variances else None


def power_note(evaluation: Evaluation, method: str, difference: float = 0.1) -> str | None:
    """How many questions a difference between the adapter and another method needs, in a sentence.

    Args:
        evaluation: Its scores tell how much differences vary from question to question.
        method: The other method.
        difference: On the main judge's scale.
    """
    deviation = deviation_of_differences(evaluation, method)
    if deviation is None:
        return None
    needed = questions_needed(difference, deviation)
    judge = evaluation.judge
    return (
        f"Power: adapter and {method} differ by {deviation:.2f} (standard deviation) from question to question, so a "
        f"true difference of {difference:g} on the scale of {judge.lowest:g} to {judge.highest:g} of the judge "
        f"{judge.name} needs {needed} questions to be found with 80 % power at the 5 % level (paired t test)."
    )
