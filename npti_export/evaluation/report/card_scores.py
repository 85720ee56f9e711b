"""The figures of an evaluation that go into an adapter's config and onto its card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.evaluation.intervals import Estimate
from npti_export.evaluation.methods import ADAPTER, PERSONA, PLACEBO
from npti_export.evaluation.results import Evaluation, PersonalityResult

DIGITS = 4


def with_scores(adapter: PersonalityAdapter, evaluation: Evaluation) -> PersonalityAdapter:
    """The adapter with what was measured of its poles, by judge; what other judges and benchmarks said is kept.

    Args:
        adapter: The adapter that was evaluated, at strength 1.
        evaluation: What was found.
    """
    for result in evaluation.personalities:
        method = result.method(ADAPTER)
        if result.trait not in adapter.traits or method is None or method.strength != 1.0:
            continue
        trait = adapter.traits[result.trait]
        record = trait.poles[result.pole]
        scores = {**record.scores, **scores_of_pole(evaluation, result), **_benchmarks(evaluation, result.personality)}
        adapter = adapter.with_trait(replace(trait, poles={**trait.poles, result.pole: replace(record, scores=scores)}))
    return adapter


def scores_of_pole(evaluation: Evaluation, result: PersonalityResult) -> dict[str, dict[str, Any]]:
    """By judge: effect, placebo, prompt and fluency, each mean, low and high, and bleed by the main judge.

    Args:
        evaluation: The whole, for the judges.
        result: One personality of it.
    """
    found: dict[str, dict[str, Any]] = {}
    steered = result.method(ADAPTER)
    for judge in evaluation.settings.judges:
        if judge.criterion != "trait" or steered is None:
            continue
        effects = {}
        for name, called in ((ADAPTER, "effect"), (PLACEBO, "placebo"), (PERSONA, "prompt")):
            method = result.method(name)
            rating = None if method is None else method.rating(judge.name)
            if rating is not None and rating.effect is not None:
                effects[called] = _numbers(rating.effect)
        if "effect" not in effects:
            continue
        found[judge.name] = {
            **effects,
            "fluency": _numbers(steered.fluency.ratio),
            "questions": len(result.questions),
            "judge": judge.name,
        }
        others = {trait: change for trait, change in steered.bleed.items() if trait != result.trait}
        if others and judge.name == evaluation.judge.name:
            found[judge.name]["bleed"] = {trait: _numbers(change) for trait, change in others.items()}
    return found


def _benchmarks(evaluation: Evaluation, personality: str) -> dict[str, dict[str, Any]]:
    """The change of each benchmark's score in points, by what measured it; nothing where none was run."""
    section = evaluation.sections.get("capability")
    if section is None:
        return {}
    changes = {
        f"{score['task']} ({score['metric'].removesuffix(',none')})": [
            round(score["change"][part], 2) for part in ("mean", "low", "high")
        ]
        for score in section["scores"]
        if score["personality"] == personality and score["change"] is not None
    }
    return {"lm-eval": {"capability": changes}} if changes else {}


def _numbers(estimate: Estimate) -> list[float]:
    return [round(number, DIGITS) for number in (estimate.mean, estimate.low, estimate.high)]
