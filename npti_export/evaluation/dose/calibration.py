"""How each pole is steered, and its dose: what has the largest effect that fluency allows, on questions held back.

The questions held back are few, and the cheapest of many noisy figures looks cheaper than it is: doses taken by their
mean ratio of up to 1.49 on 20 of them cost 1.7 to 1.9 on test questions. So it is the upper end of the ratio's 95 %
interval that must keep within the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.records import (
    MOVES_BY_MEAN,
    NPTI,
    ONLY_RESIDUAL,
    DosePoint,
    Identification,
    PoleRecord,
    TraitRecord,
)
from npti_export.evaluation.dose.trial import DoseBudget, Trial, TriedDose, with_dose
from npti_export.evaluation.judges.local_judge import LocalJudge
from npti_export.evaluation.protocol import EVALUATION_DECODING
from npti_export.identification.answers import Decoding, Progress
from npti_export.traits import Pole
from npti_export.traits.material import Question

DOSES = (0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Values of γ that are tried with equation 4; the paper's own is 1.4. Seven are halved in three steps."""
DOSES_BY_MEAN = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
"""The same where γ is a multiple of the difference of the poles' means, or of fitted vectors; 2 to 3 on neurons and 1
to 2 on the residual stream were best on a 5.9 M-parameter chat model, about 2 of fitted vectors on npti-demo."""


@dataclass(frozen=True)
class TriedWay:
    """One way to steer a pole, at several doses.

    Args:
        trait: The trait as that way selects it, both poles, at no particular dose.
        pole: The pole steered to.
        doses: What was measured, ascending, at least one.
    """

    trait: TraitRecord
    pole: Pole
    doses: tuple[TriedDose, ...]

    @property
    def record(self) -> PoleRecord:
        """Of that pole."""
        return self.trait.poles[self.pole]

    @property
    def best(self) -> TriedDose:
        """The dose with the largest effect that is affordable; the cheapest where none is."""
        return best_dose(self.doses)


@dataclass(frozen=True)
class Calibration:
    """How a trait was calibrated.

    Args:
        trait: With the way, the dose and the dose curve of both poles.
        tried: All ways tried at each pole, the one that was taken first; none where the dose was not measured.
        reasons: Why each pole is steered as it is, in a sentence.
    """

    trait: TraitRecord
    tried: dict[Pole, tuple[TriedWay, ...]]
    reasons: dict[Pole, str]


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base_model: BaseModel,
    ways: Sequence[Sequence[TraitRecord]],
    questions: Sequence[Question],
    judge: LocalJudge,
    decoding: Decoding = EVALUATION_DECODING,
    progress: Progress | None = None,
) -> Calibration:
    """Tries ways to steer a trait at several doses, and takes for each pole the one with the largest effect in budget.

    Of each list the way is taken that does best at the middle dose. Then γ is found by halving: cost rises with it. At
    the way that is chosen the smaller doses are measured too, which gives the dose curve, and one between the largest
    affordable dose and the next. A pole may cap the opposite one's neurons only where these are the ones that were
    capped while it was measured.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        base_model: What an adapter records of it.
        ways: The trait as each way selects it, at least one; what stands in one list differs in detail.
        questions: Held back from identification.
        judge: Trained on the transcripts of identification.
        decoding: How answers are decoded.
        progress: Told how many more answers are there, of ``most_answers(…)`` at most.

    Returns:
        The trait with way, dose, shifts and dose curve of both poles, all that was tried, and why. Where no dose is
        affordable, the one that costs least is taken; of equal effects the earlier way and the smaller dose.

    Raises:
        NptiError: If the judge was trained on answers to one of the questions.
    """
    trial = Trial(model, tokenizer, base_model, [question.text for question in questions], judge, decoding, progress)
    tried = search(trial, ways)
    chosen = chosen_ways(tried)
    poles, reasons = {}, {}
    for pole in Pole:
        others = [way for way in tried[pole] if way is not chosen[pole]]
        way = chosen[pole] = _filled(trial, chosen[pole])
        tried[pole] = (way, *others)
        poles[pole] = recommended(way)
        reasons[pole] = reason_of(way, others)
    made = identification_of({pole: way.trait.identification for pole, way in chosen.items()})
    return Calibration(TraitRecord(chosen[Pole.HIGH].trait.name, poles, made), tried, reasons)


def left_uncalibrated(trait: TraitRecord) -> Calibration:
    """A trait at the γ that its method starts from, which is marked as not calibrated: nothing is tried.

    Args:
        trait: As select made it, and fit where its method is ``fitted``.
    """
    reasons = {}
    for pole, record in trait.poles.items():
        origin = "the paper's" if record.method.name == NPTI else f"what {record.method.name} starts from"
        reasons[pole] = (
            f"the dose was not measured; γ {record.gamma:g} is {origin}, and `npti-export calibrate` finds the one for "
            "this model."
        )
    return Calibration(trait, dict.fromkeys(Pole, ()), reasons)


def search(trial: Trial, ways: Sequence[Sequence[TraitRecord]]) -> dict[Pole, tuple[TriedWay, ...]]:
    """Of each list the way that does best at the middle dose, at the largest dose that it affords, for each pole."""
    return {pole: tuple(halved(trial, _at_middle_dose(trial, of_list, pole)) for of_list in ways) for pole in Pole}


def recommended(way: TriedWay) -> PoleRecord:
    """The pole as a way steers it at its best dose, with what was measured as its dose curve."""
    curve = tuple(DosePoint(dose.gamma, dose.effect.mean, dose.fluency.mean) for dose in way.doses)
    return replace(with_dose(way.record, way.best.gamma), calibrated=True, dose_curve=curve)


def most_answers(ways: Sequence[Sequence[object]], questions: int) -> int:
    """How many answers :func:`calibrate` asks for at most, with so many questions."""
    halving = len(DOSES).bit_length()
    each = sum(len(of_list) + halving - 1 for of_list in ways) + len(DOSES) - halving + 1
    return (1 + 2 * each) * questions


def best_dose(doses: Sequence[TriedDose]) -> TriedDose:
    """The dose with the largest effect that is affordable; the cheapest where none is.

    >>> from npti_export.evaluation.intervals import Estimate
    >>> def tried(gamma, effect, high):
    ...     return TriedDose(gamma, Estimate(effect, effect, effect), Estimate(1.0, 1.0, high))
    >>> best_dose([tried(0.5, 0.2, 1.1), tried(1.0, 0.4, 1.4), tried(1.4, 0.5, 1.9)]).gamma
    1.0
    """
    affordable = [dose for dose in doses if dose.affordable]
    if affordable:
        return max(affordable, key=lambda dose: (dose.effect.mean, -dose.gamma))
    return min(doses, key=lambda dose: dose.cost)


def way_name(record: PoleRecord) -> str:
    """A way to steer in a few words, such as ``npti, δ ≥ 0.1, caps opposite``."""
    method = record.method
    layers = [] if record.residual is None else record.residual.layer.tolist()
    behind = f" behind layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}" if layers else ""
    if method.name == NPTI:
        return f"npti, δ ≥ {method.min_difference:g}, caps {record.caps}"
    if method.name in MOVES_BY_MEAN:
        return f"{method.name}{behind}, {len(record.neurons)} neurons of |d| ≥ {method.min_effect_size:g}"
    return f"{method.name}{behind}"


def doses_of(record: PoleRecord) -> tuple[float, ...]:
    """Values of γ that are tried with the method of a pole, ascending."""
    return DOSES if record.method.name == NPTI else DOSES_BY_MEAN


def _at_middle_dose(trial: Trial, of_list: Sequence[TraitRecord], pole: Pole) -> TriedWay:
    """The way of a list that does best at the middle dose."""
    tried = []
    for trait in of_list:
        doses = doses_of(trait.poles[pole])
        tried.append(TriedWay(trait, pole, (trial.measure(trait, pole, doses[len(doses) // 2]),)))
    return max(tried, key=worth)


def halved(trial: Trial, way: TriedWay) -> TriedWay:
    """Looks for the largest dose that is affordable, by halving from the middle on."""
    doses = doses_of(way.record)
    measured = {dose.gamma: dose for dose in way.doses}
    below, above = -1, len(doses)
    while above - below > 1:
        at = (below + above) // 2
        if doses[at] not in measured:
            measured[doses[at]] = trial.measure(way.trait, way.pole, doses[at])
        below, above = (at, above) if measured[doses[at]].affordable else (below, at)
    return replace(way, doses=tuple(measured[gamma] for gamma in doses if gamma in measured))


def _filled(trial: Trial, way: TriedWay) -> TriedWay:
    """The way with the doses below its largest affordable one that were passed over, and one between that and the next.

    From one dose to the next the cost may rise from 1.2 to 2.4.
    """
    measured = {dose.gamma: dose for dose in way.doses}
    most = max((dose.gamma for dose in way.doses if dose.affordable), default=None)
    if most is None:
        return way
    gammas = [gamma for gamma in doses_of(way.record) if gamma < most]
    above = [dose.gamma for dose in way.doses if dose.gamma > most]
    if above:
        gammas.append(round(math.sqrt(most * above[0]), 2))
    for gamma in gammas:
        if gamma not in measured:
            measured[gamma] = trial.measure(way.trait, way.pole, gamma)
    return replace(way, doses=tuple(measured[gamma] for gamma in sorted(measured)))


def chosen_ways(tried: Mapping[Pole, Sequence[TriedWay]]) -> dict[Pole, TriedWay]:
    """The ways of both poles that go together and are worth most; of equal ones the first."""
    pairs = [
        (high, low)
        for high, low in product(tried[Pole.HIGH], tried[Pole.LOW])
        if _caps_hold(high, low) and _caps_hold(low, high)
    ]
    high, low = max(pairs, key=lambda pair: tuple(map(sum, zip(*map(worth, pair), strict=True))))
    return {Pole.HIGH: high, Pole.LOW: low}


def _caps_hold(way: TriedWay, opposite: TriedWay) -> bool:
    """Whether what a way caps at the opposite pole is what the opposite's own way has there."""
    method, other = way.record.method, opposite.record.method
    same = other.name in (NPTI, *ONLY_RESIDUAL) and other.min_difference == method.min_difference
    return way.record.caps == "none" or same


def worth(way: TriedWay) -> tuple[float, float, float]:
    """Affordable before all else; then the effect, or where it is not affordable what it costs."""
    best = way.best
    return (1.0, best.effect.mean, 0.0) if best.affordable else (0.0, 0.0, -best.cost)


def reason_of(way: TriedWay, others: Sequence[TriedWay]) -> str:
    """Why this way was taken, in a sentence."""
    said, budget = f"{way_name(way.record)}, {way.best}", way.best.budget
    if not way.best.affordable:
        return f"{said}: nothing keeps within {_in_words(budget)}, and this costs least."
    why = f"the largest effect found whose cost keeps within {budget} up to the end of its interval"
    rivals = [other for other in others if other.best.affordable]
    if not rivals:
        return f"{said}: {why}."
    next_best = max(rivals, key=lambda other: other.best.effect.mean)
    gamma, effect = next_best.best.gamma, next_best.best.effect.mean
    return f"{said}: {why}; next is {way_name(next_best.record)}, γ {gamma:g}, effect {effect:+.2f}."


def _in_words(budget: DoseBudget) -> str:
    return f"{budget} times the perplexity" if budget.loss is None else str(budget)


def identification_of(of_poles: Mapping[Pole, Identification]) -> Identification:
    """Where a trait came from, with what each pole's own way says of how sure its neurons are."""
    overlaps, margins = ({}, {})
    for pole, made in of_poles.items():
        overlaps[str(pole)] = (made.selection_overlap or {}).get(str(pole))
        margins[str(pole)] = (made.delta_margin or {}).get(str(pole))
    known = {pole: overlap for pole, overlap in overlaps.items() if overlap is not None}
    return replace(of_poles[Pole.HIGH], selection_overlap=known or None, delta_margin=margins if known else None)
