"""From answers and judgements of one personality to its results: means, differences, fluency, style, bleed, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from npti_export.errors import NptiError
from npti_export.evaluation.compare import Dosed, Scores, matched, paired_difference, rank_correlation, tips_over
from npti_export.evaluation.intervals import bootstrap_mean, exponential
from npti_export.evaluation.judges.judgement import Criterion, Judgement
from npti_export.evaluation.methods import ADAPTER, UNSTEERED
from npti_export.evaluation.results import (
    CurvePoint,
    Difference,
    DoseCurve,
    Fluency,
    MethodResult,
    Rating,
)
from npti_export.evaluation.style import distinct, repeated_runs, style_of
from npti_export.identification.answers import Answer


@dataclass(frozen=True, eq=False)
class Answered:
    """One method at one dose: its answers to the personality's own questions, and what is known of them.

    Args:
        answers: One a question.
        judged: By each judge, its name and criterion.
        nll: Of each answer under the unsteered model, float64 [questions].
        nll_in_character: The same under the model with the personas of the pole.
        elsewhere: The main judge's scores of its answers to other traits' questions, by trait.
    """

    answers: Sequence[Answer]
    judged: Mapping[tuple[str, Criterion], Sequence[Judgement]]
    nll: Scores
    nll_in_character: Scores
    elsewhere: Mapping[str, Scores]

    @property
    def main(self) -> Scores:
        """What the main judge says of the trait, one a question."""
        return scores_of(next(said for (_, criterion), said in self.judged.items() if criterion == "trait"))


def scores_of(judgements: Sequence[Judgement]) -> Scores:
    """Scores, nan where the judge failed."""
    return np.array([np.nan if judgement.score is None else judgement.score for judgement in judgements])


def method_result(
    name: str,
    strength: float | None,
    mine: Answered,
    unsteered: Answered,
    in_character: Scores,
    trait: str,
    direction: float,
    seed: int,
) -> MethodResult:
    """What one method did on one personality.

    Args:
        name: The method.
        strength: Its dial.
        mine: Its answers.
        unsteered: Those of the unsteered model.
        in_character: NLL of the persona prompt's answers under the model with the personas.
        trait: The personality's own.
        direction: 1 towards the high end, -1 towards the low end.
        seed: Decides the resamples.

    Raises:
        NptiError: If the main judge gave no score, or the unsteered model has none to compare with.
    """
    base = None if name == UNSTEERED else unsteered
    ratings = tuple(
        _rating(key, said, None if base is None else base.judged[key], direction, seed)
        for key, said in mine.judged.items()
    )
    main = next(rating for rating in ratings if rating.criterion == "trait")
    if main.mean is None or (base is not None and main.effect is None):
        failures = sorted({failure for failure in main.failures if failure})
        raise NptiError(f"The judge gave no score under {name} ({'; '.join(failures) or 'no reason given'}).")
    texts = [answer.text for answer in mine.answers]
    fluency = Fluency(
        tuple(mine.nll.tolist()),
        exponential(bootstrap_mean(mine.nll - unsteered.nll, seed)),
        tuple(mine.nll_in_character.tolist()),
        exponential(bootstrap_mean(mine.nll_in_character - in_character, seed)),
        bootstrap_mean(np.array([repeated_runs(text) for text in texts]), seed),
        distinct(texts, 1),
        distinct(texts, 2),
        float(np.mean([not answer.finished for answer in mine.answers])),
    )
    bleed = {}
    if base is not None and mine.elsewhere:
        pairs = {trait: (mine.main, base.main)} | {
            other: (scores, base.elsewhere[other]) for other, scores in mine.elsewhere.items()
        }
        found = {other: paired_difference(*pair, seed) for other, pair in pairs.items()}
        bleed = {other: change for other, change in found.items() if change is not None}
    return MethodResult(name, strength, tuple(texts), ratings, fluency, style_of(texts, trait, seed), bleed)


def dose_curve(
    name: str, doses: Mapping[float, Answered], unsteered: Answered, direction: float, seed: int
) -> DoseCurve:
    """A method at several strengths, ascending.

    Args:
        name: The method.
        doses: Its answers at each strength.
        unsteered: Those of the unsteered model.
        direction: 1 towards the high end, -1 towards the low end.
        seed: Decides the resamples.

    Raises:
        NptiError: If the judge gave no score at a dose.
    """
    points, effects = [], [np.where(np.isnan(unsteered.main), np.nan, 0.0)]
    for strength, mine in sorted(doses.items()):
        effects.append(direction * (mine.main - unsteered.main))
        effect = paired_difference(effects[-1], np.zeros_like(mine.nll), seed)
        if effect is None:
            raise NptiError(f"The judge gave no score under {name} at strength {strength:g}.")
        ratio = exponential(bootstrap_mean(mine.nll - unsteered.nll, seed))
        scores = tuple(None if np.isnan(score) else float(score) for score in mine.main)
        points.append(CurvePoint(strength, effect, ratio, scores, tuple(mine.nll.tolist())))
    strengths = [0.0, *(point.strength for point in points)]
    correlation = rank_correlation(strengths, [float(np.nanmean(effect)) for effect in effects])
    return DoseCurve(name, tuple(points), correlation, tips_over(strengths, effects, seed))


def differences(
    at_default: Mapping[str, Answered], doses: Mapping[float, Answered], direction: float, seed: int
) -> tuple[Difference, ...]:
    """The adapter held against every other method, as both are recommended and dialled to the other's cost.

    Args:
        at_default: By method; the unsteered model and the adapter are among them.
        doses: The adapter's answers at each strength; empty compares nothing at matched cost.
        direction: 1 towards the high end, -1 towards the low end.
        seed: Decides the resamples.
    """
    unsteered, adapter = at_default[UNSTEERED], at_default[ADAPTER]
    dial = [
        Dosed(strength, direction * (mine.main - unsteered.main), mine.nll - unsteered.nll)
        for strength, mine in sorted(doses.items())
    ]
    found: list[Difference] = []
    for name, other in at_default.items():
        if name in (UNSTEERED, ADAPTER):
            continue
        effect = paired_difference(direction * adapter.main, direction * other.main, seed)
        if effect is not None:
            found.append(Difference(ADAPTER, name, effect))
        place = matched(dial, float((other.nll - unsteered.nll).mean()))
        if place is None:
            continue
        effect = paired_difference(place.effect, direction * (other.main - unsteered.main), seed)
        if effect is not None:
            found.append(Difference(ADAPTER, name, effect, True, place.strength, float(np.exp(place.cost))))
    return tuple(found)


def _rating(
    key: tuple[str, Criterion],
    mine: Sequence[Judgement],
    base: Sequence[Judgement] | None,
    direction: float,
    seed: int,
) -> Rating:
    judge, criterion = key
    scores = scores_of(mine)
    there = scores[~np.isnan(scores)]
    sign = direction if criterion == "trait" else 1.0
    return Rating(
        judge,
        criterion,
        tuple(None if judgement.score is None else float(judgement.score) for judgement in mine),
        tuple(judgement.reason for judgement in mine),
        tuple(judgement.failure for judgement in mine),
        bootstrap_mean(there, seed) if there.size else None,
        float(there.var(ddof=1)) if there.size > 1 else None,
        None if base is None else paired_difference(sign * scores, sign * scores_of(base), seed),
    )
