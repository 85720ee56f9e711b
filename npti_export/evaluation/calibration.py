"""The dose of a pole: the γ with the largest effect that fluency allows, on questions held back from identification.

Effect is the mean paired change of the judge's score in the pole's direction. Fluency is the perplexity ratio: exp of
the mean rise, over questions, of the answer's NLL a token under the unsteered model without persona.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.records import DosePoint, PoleRecord, TraitRecord
from npti_export.evaluation.fluency import answer_nll
from npti_export.evaluation.local_judge import LocalJudge
from npti_export.evaluation.protocol import EVALUATION_DECODING
from npti_export.identification.answers import Answer, Decoding, Progress, Prompt, generate_answers
from npti_export.steering.personality import load_personality
from npti_export.traits import PersonalitySpec, Pole, Term
from npti_export.traits.material import Question

DOSES = (0.2, 0.35, 0.5, 0.7, 1.0, 1.4)
"""Values of γ that are tried; the paper's own is 1.4."""
MAX_FLUENCY = 1.5
"""Largest perplexity ratio that a recommended dose may cost."""


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: PersonalityAdapter,
    trait: str,
    questions: Sequence[Question],
    judge: LocalJudge,
    decoding: Decoding = EVALUATION_DECODING,
    progress: Progress | None = None,
) -> TraitRecord:
    """Sweeps γ for both poles of a trait and takes the dose with the largest effect within the fluency budget.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        adapter: Holds the trait; its γ does not matter.
        trait: Which trait.
        questions: Held back from identification.
        judge: Trained on the transcripts of identification.
        decoding: How answers are decoded.
        progress: Told how many more answers are there, of ``(2 · len(DOSES) + 1) · questions``.

    Returns:
        The trait with dose, shifts and dose curve of both poles. Where no dose stays within the budget, the one that
        costs least is taken; of equal effects the smaller dose.

    Raises:
        NptiError: If the judge was trained on answers to one of the questions.
    """
    texts = [question.text for question in questions]
    prompts = [Prompt(text) for text in texts]
    base_answers = generate_answers(model, tokenizer, prompts, decoding, progress)
    base_nll = answer_nll(model, tokenizer, texts, base_answers, decoding.batch_size)
    base_score = _scores(judge, texts, base_answers)
    record = adapter.traits[trait]
    calibrated = {}
    for pole in Pole:
        curve = []
        for gamma in DOSES:
            dosed = adapter.with_trait(_with_pole(record, pole, with_dose(record.poles[pole], gamma)))
            with load_personality(model, PersonalitySpec((Term(trait, pole),)), dosed):
                answers = generate_answers(model, tokenizer, prompts, decoding, progress)
            effect = float(np.mean(_scores(judge, texts, answers) - base_score)) * (1 if pole is Pole.HIGH else -1)
            cost = float(np.mean(answer_nll(model, tokenizer, texts, answers, decoding.batch_size) - base_nll))
            curve.append(DosePoint(gamma, round(effect, 4), round(float(np.exp(cost)), 4)))
        chosen = best_dose(curve)
        dosed_record = with_dose(record.poles[pole], chosen.gamma)
        calibrated[pole] = replace(dosed_record, calibrated=True, dose_curve=tuple(curve))
    return replace(record, poles=calibrated)


def best_dose(curve: Sequence[DosePoint]) -> DosePoint:
    """The point with the largest effect within the fluency budget; the cheapest where none is within it.

    >>> best_dose([DosePoint(0.5, 0.2, 1.1), DosePoint(1.0, 0.4, 1.4), DosePoint(1.4, 0.5, 1.9)]).gamma
    1.0
    """
    within = [point for point in curve if point.fluency <= MAX_FLUENCY]
    if within:
        return max(within, key=lambda point: (point.effect, -point.gamma))
    return min(curve, key=lambda point: point.fluency)


def with_dose(record: PoleRecord, gamma: float) -> PoleRecord:
    """The pole at another γ, its shifts made anew (equation 4)."""
    neurons = record.neurons
    shift = record.method.shift(gamma, neurons.target, neurons.delta)
    return replace(record, gamma=gamma, neurons=replace(neurons, shift=shift))


def _scores(judge: LocalJudge, questions: Sequence[str], answers: Sequence[Answer]) -> NDArray[np.float64]:
    judgements = judge.judge(questions, [answer.text for answer in answers])
    return np.array([judgement.score for judgement in judgements], dtype=np.float64)


def _with_pole(record: TraitRecord, pole: Pole, changed: PoleRecord) -> TraitRecord:
    return replace(record, poles={**record.poles, pole: changed})
