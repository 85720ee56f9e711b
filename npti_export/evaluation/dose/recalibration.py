"""`calibrate`: the recommended dose of every pole of an adapter, on questions of its own, and what sums cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.records import TraitRecord
from npti_export.errors import NptiError
from npti_export.evaluation.dose.calibration import TriedWay, way_name
from npti_export.evaluation.dose.capability_budget import Capable
from npti_export.evaluation.dose.overdose import SumCost, check_sums, sums_to_check
from npti_export.evaluation.dose.sweep import (
    Searched,
    Swept,
    best_positions,
    calibrated,
    most_search_answers,
    most_sweep_answers,
    search_trait,
    sweep,
)
from npti_export.evaluation.dose.trial import DoseBudget, Trial
from npti_export.evaluation.intervals import Estimate
from npti_export.evaluation.kept_answers import KeptAnswers
from npti_export.evaluation.protocol import Judge, Stage
from npti_export.identification.answers import Decoding
from npti_export.identification.elicit import Transcript
from npti_export.identification.files import write_beside
from npti_export.identification.questions import balanced
from npti_export.traits import Pole
from npti_export.traits.material import Question

MAX_RATIO = 1.3
"""Largest perplexity ratio of a recommended dose, to the end of its interval."""
MAX_LOSS = 0.05
"""Largest loss of fluency by a judge, as a share of its scale."""
QUESTIONS = 60
"""Of each trait: the interval of a perplexity ratio is then some 8 % wide to either side on npti-demo."""
SUM_QUESTIONS = 20
"""Of all traits together, for each sum: a warning needs less than a dose."""
POSITIONS = ("generated", "last_prompt+generated")
"""Position modes that are tried. Not ``all``: questions of one turn do not show what steering a long prompt costs."""


@dataclass(frozen=True)
class Recalibrated:
    """What was found.

    Args:
        adapter: With the doses.
        swept: Of each trait and pole.
        sums: What sums of personalities cost, the most expensive first.
        capable: What poles lose on benchmarks, where that was measured.
    """

    adapter: PersonalityAdapter
    swept: dict[str, dict[Pole, Swept]]
    sums: tuple[SumCost, ...]
    capable: tuple[Capable, ...] = ()

    @property
    def warnings(self) -> Iterator[str]:
        """What the user should know, a sentence each."""
        for name, poles in self.swept.items():
            for pole, swept in poles.items():
                if not swept.way.best.affordable:
                    yield f"{name}{pole.sign}: no dose keeps within the budget; the cheapest is recommended."
                elif swept.way.best.effect.low <= 0.0:
                    yield f"{name}{pole.sign}: the effect of the recommended dose is not surely above 0."
        over = [cost for cost in self.sums if cost.overdoses]
        if over:
            worst = "; ".join(f"{cost.personality} {_shown(cost.ratio)}" for cost in over[:3])
            yield (
                f"{len(over)} of {len(self.sums)} sums cost more than a single personality may, most of all {worst} "
                "times the perplexity; give their terms lower strengths."
            )


def own_questions(
    questions: Sequence[Question], transcripts: Sequence[Transcript], trait: str, count: int, seed: int
) -> list[str]:
    """Questions that identification did not ask, balanced over facets.

    Args:
        questions: Of the trait.
        transcripts: Of identification.
        trait: Its name, for the message.
        count: How many are wanted at most.
        seed: Decides which.

    Raises:
        NptiError: If fewer than two are left.
    """
    asked = {transcript.question for transcript in transcripts}
    left = [question for question in questions if question.text not in asked]
    if len(left) < len(tuple(Pole)):
        raise NptiError(
            f"{trait}: {len(left)} of {len(questions)} questions were not asked in identification, and at least 2 are "
            "needed to find a dose; give others with --questions."
        )
    return [question.text for question in balanced(left, seed)[:count]]


def recalibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: PersonalityAdapter,
    ways: Mapping[str, Sequence[Sequence[TraitRecord]]],
    positions: Sequence[str],
    questions: Mapping[str, Sequence[str]],
    judges: Mapping[str, Sequence[Judge]],
    decoding: Decoding,
    budget: DoseBudget,
    stage: Stage,
    keep_in: Path | None = None,
) -> Recalibrated:
    """Finds the dose of both poles of traits, and checks sums of them.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        adapter: The adapter as it is.
        ways: How each trait may be steered, as :func:`calibration.search` takes them; the trait itself keeps its way.
        positions: Position modes to try beside the one that the ways have; none keeps it.
        questions: Of each trait, its own.
        judges: Of each trait; the first that rates the trait counts, and one of fluency where there is one.
        decoding: How answers are decoded.
        budget: What a dose may cost; its loss counts only where a judge rates fluency.
        stage: Shows progress.
        keep_in: A file of answers, so that a run that was broken off asks only the rest; None keeps nothing.

    Raises:
        NptiError: If the judge was trained on one of the questions, or rated nothing, or answers cannot be kept.
    """
    kept = KeptAnswers(keep_in)
    trials: dict[str, Trial] = {}
    searched: dict[str, Searched] = {}
    found: dict[str, dict[Pole, Swept]] = {}
    modes = len([mode for mode in positions if mode != _positions_of(ways)])
    for name, of_trait in ways.items():
        raters = judges[name]
        of_trait_judge = next(judge for judge in raters if judge.criterion == "trait")
        fluency = next((judge for judge in raters if judge.criterion == "fluency"), None)
        of_trait_budget = budget if fluency is not None else DoseBudget(budget.ratio)
        texts = list(questions[name])
        with stage(f"{name}: find the dose", most_search_answers(of_trait, modes, len(texts))) as progress:
            base = adapter.base_model
            trials[name] = Trial(
                model, tokenizer, base, texts, of_trait_judge, decoding, progress, of_trait_budget, fluency, kept
            )
            searched[name] = search_trait(trials[name], of_trait, positions)
    left_alone = [
        record.positions
        for name, trait in adapter.traits.items()
        if name not in ways
        for record in trait.poles.values()
    ]
    chosen = best_positions(list(searched.values()), left_alone) if modes else None
    for name, trial in trials.items():
        by_positions = searched[name].by_positions
        # Where no other mode is tried each trait keeps its own, which may differ.
        tried = by_positions[chosen] if chosen else next(iter(by_positions.values()))
        steps = most_sweep_answers(ways[name], len(questions[name]))
        with stage(f"{name}: measure all doses", steps) as trial.progress:
            found[name] = sweep(trial, tried)
        adapter = adapter.with_trait(calibrated(found[name]))
    specs = sums_to_check(adapter, list(ways))
    each = max(1, SUM_QUESTIONS // len(questions))
    mixed = [text for texts in questions.values() for text in texts[:each]]
    sums: list[SumCost] = []
    if specs:
        with stage("sums of personalities", (1 + len(specs)) * len(mixed)) as progress:
            sums = check_sums(model, tokenizer, adapter, specs, mixed, decoding, budget.ratio, progress, kept)
    return Recalibrated(adapter, found, tuple(sums))


def write_calibration(folder: Path, found: Recalibrated) -> None:
    """Writes what was tried, and what sums cost, as JSON beside the adapter.

    Raises:
        NptiError: If it cannot be written.
    """
    for name, poles in found.swept.items():
        record = {str(pole): as_json(found, name, pole) for pole in poles}
        _write(folder / "statistics" / f"{name}.calibration.json", record)
    sums = [{"personality": s.personality, "ratio": _numbers(s.ratio), "overdoses": s.overdoses} for s in found.sums]
    _write(folder / "statistics" / "sums.json", sums)


def as_json(found: Recalibrated, name: str, pole: Pole) -> dict[str, Any]:
    """What was found of one pole; where benchmarks brought its dose down, ``capability`` says to which share of it."""
    swept = found.swept[name][pole]
    best = swept.way.best
    lost = next((one for one in found.capable if one.personality == f"{name}{pole.sign}"), None)
    return {
        "way": way_name(swept.way.record),
        "positions": swept.way.record.positions,
        "gamma": best.gamma,
        "effect": _numbers(best.effect),
        "fluency": _numbers(best.fluency),
        "fluency_loss": None if best.loss is None else _numbers(best.loss),
        "affordable": best.affordable,
        "budget": str(best.budget),
        "capability": None if lost is None else asdict(lost),
        "rank_correlation": swept.rank_correlation,
        "tips_over": swept.tips_over,
        "reason": swept.reason,
        "doses": _doses(swept.way),
        "others": [{"way": way_name(way.record), "doses": _doses(way)} for way in swept.others],
    }


def _positions_of(ways: Mapping[str, Sequence[Sequence[TraitRecord]]]) -> str:
    """The position mode that the ways have."""
    first = next(iter(ways.values()))[0][0]
    return first.poles[Pole.HIGH].positions


def _doses(way: TriedWay) -> list[dict[str, Any]]:
    return [
        {"gamma": dose.gamma, "effect": _numbers(dose.effect), "fluency": _numbers(dose.fluency)} for dose in way.doses
    ]


def _numbers(estimate: Estimate) -> list[float]:
    return [estimate.mean, estimate.low, estimate.high]


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _write(path: Path, record: object) -> None:
    write_beside(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
