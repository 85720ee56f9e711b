"""One way to steer a pole at one dose, tried on questions held back from identification.

Effect is the mean paired change of the judge's score in the pole's direction. Fluency is the perplexity ratio: exp of
the mean rise, over questions, of the answer's NLL a token under the unsteered model without persona.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.records import PoleRecord, TraitRecord
from npti_export.evaluation.fluency import answer_nll
from npti_export.evaluation.intervals import Estimate, bootstrap_mean, exponential
from npti_export.evaluation.local_judge import LocalJudge
from npti_export.identification.answers import Answer, Decoding, Progress, Prompt, generate_answers
from npti_export.steering.personality import load_personality
from npti_export.traits import PersonalitySpec, Pole, Term

MAX_FLUENCY = 1.5
"""Largest perplexity ratio that a recommended dose may cost."""
DIGITS = 4
"""Of the figures in files."""


@dataclass(frozen=True)
class TriedDose:
    """What a γ did on the questions held back.

    Args:
        gamma: The dose.
        effect: Mean change of the judge's score in the direction of the pole.
        fluency: Perplexity ratio.
    """

    gamma: float
    effect: Estimate
    fluency: Estimate

    @property
    def affordable(self) -> bool:
        """Whether the ratio's whole interval lies within the budget."""
        return self.fluency.high <= MAX_FLUENCY

    def __str__(self) -> str:
        low, mean, high = (f"{value:.2f}" for value in (self.fluency.low, self.fluency.mean, self.fluency.high))
        return f"γ {self.gamma:g}, effect {self.effect} at {mean} [{low}, {high}] times the perplexity"


def with_dose(record: PoleRecord, gamma: float) -> PoleRecord:
    """The pole at another γ, its shifts and its residual made anew."""
    neurons = record.neurons
    shift = record.method.shift(gamma, neurons.target, neurons.delta, neurons.mean_difference)
    residual = record.residual
    if residual is not None:
        vector = residual.vector.astype(np.float64) * (gamma / record.gamma)
        residual = replace(residual, vector=vector.astype(np.float32))
    return replace(record, gamma=gamma, neurons=replace(neurons, shift=shift), residual=residual)


class Trial:
    """The questions held back, answered by the unsteered model: what every dose is held against.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        base_model: What an adapter records of it.
        texts: The questions.
        judge: Trained on the transcripts of identification.
        decoding: How answers are decoded.
        progress: Told how many more answers are there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        base_model: BaseModel,
        texts: list[str],
        judge: LocalJudge,
        decoding: Decoding,
        progress: Progress | None,
    ) -> None:
        self._model, self._tokenizer, self._base_model = model, tokenizer, base_model
        self._texts, self._judge, self._decoding, self._progress = texts, judge, decoding, progress
        answers = self._answers()
        self._score, self._nll = self._scores(answers), self._costs(answers)

    def measure(self, trait: TraitRecord, pole: Pole, gamma: float) -> TriedDose:
        """Steers to a pole as the trait says, at a dose, and asks all questions."""
        poles = {**trait.poles, pole: with_dose(trait.poles[pole], gamma)}
        # Nothing else is in it: a dense part of another trait need not be looked for.
        alone = PersonalityAdapter(self._base_model, {trait.name: replace(trait, poles=poles)})
        with load_personality(self._model, PersonalitySpec((Term(trait.name, pole),)), alone):
            answers = self._answers()
        effect, fluency = self.compare(answers, pole)
        return TriedDose(gamma, effect, fluency)

    def compare(self, answers: Sequence[Answer], pole: Pole) -> tuple[Estimate, Estimate]:
        """Effect towards a pole and perplexity ratio of answers to the questions, against the unsteered ones."""
        effect = (self._scores(answers) - self._score) * (1 if pole is Pole.HIGH else -1)
        cost = self._costs(answers) - self._nll
        return _rounded(bootstrap_mean(effect)), _rounded(exponential(bootstrap_mean(cost)))

    def _answers(self) -> list[Answer]:
        prompts = [Prompt(text) for text in self._texts]
        return generate_answers(self._model, self._tokenizer, prompts, self._decoding, self._progress)

    def _scores(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        judgements = self._judge.judge(self._texts, [answer.text for answer in answers])
        return np.array([judgement.score for judgement in judgements], dtype=np.float64)

    def _costs(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        return answer_nll(self._model, self._tokenizer, self._texts, answers, self._decoding.batch_size)


def _rounded(estimate: Estimate) -> Estimate:
    return Estimate(round(estimate.mean, DIGITS), round(estimate.low, DIGITS), round(estimate.high, DIGITS))
