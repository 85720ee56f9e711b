"""How far the judges of an evaluation agree, on the same answers."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from npti_export.evaluation.judges.agreement import krippendorff_alpha, spearman
from npti_export.evaluation.results import Agreement, JudgeSettings, PersonalityResult


def agreements(
    judges: tuple[JudgeSettings, ...], personalities: tuple[PersonalityResult, ...]
) -> tuple[Agreement, ...]:
    """Every pair of judges that rate the same criterion; equal answers to a question count once.

    Args:
        judges: With their scales.
        personalities: With their ratings.
    """
    found = []
    for one, other in combinations(judges, 2):
        if one.criterion != other.criterion:
            continue
        first, second = _scores(one, personalities), _scores(other, personalities)
        both = [key for key in first if key in second]
        a, b = (np.array([scores[key] for key in both]) for scores in (first, second))
        alpha, rank = krippendorff_alpha(a, b), spearman(a, b)
        rated = int((~np.isnan(a) & ~np.isnan(b)).sum())
        found.append(Agreement((one.name, other.name), one.criterion, _known(alpha), _known(rank), rated))
    return tuple(found)


def _scores(judge: JudgeSettings, personalities: tuple[PersonalityResult, ...]) -> dict[tuple[str, str, str], float]:
    """Scores drawn to 0 to 1 by trait, question and answer; nan where the judge failed."""
    scores = {}
    for result in personalities:
        for method in result.methods:
            rating = method.rating(judge.name, judge.criterion)
            if rating is None:
                continue
            for question, answer, score in zip(result.questions, method.answers, rating.scores, strict=True):
                drawn = np.nan if score is None else (score - judge.lowest) / (judge.highest - judge.lowest)
                scores[result.trait, question, answer] = drawn
    return scores


def _known(figure: float) -> float | None:
    return None if np.isnan(figure) else figure
