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
from npti_export.errors import NptiError
from npti_export.evaluation.fluency import answer_nll
from npti_export.evaluation.intervals import Estimate, bootstrap_mean, exponential
from npti_export.evaluation.kept_answers import KeptAnswers, adapter_digest, what_decides
from npti_export.evaluation.protocol import Judge
from npti_export.identification.answers import Answer, Decoding, Progress, Prompt, generate_answers
from npti_export.identification.files import digest
from npti_export.identification.processes import first_does
from npti_export.steering.personality import load_personality
from npti_export.steering.thinking import Thinking
from npti_export.traits import PersonalitySpec, Pole, Term

MAX_FLUENCY = 1.5
"""Largest perplexity ratio that a recommended dose may cost, to the end of its interval."""
DIGITS = 4
"""Of the figures in files."""


@dataclass(frozen=True)
class DoseBudget:
    """What a recommended dose may cost; it is the upper end of the 95 % interval that must keep within.

    Args:
        ratio: Largest perplexity ratio.
        loss: Largest loss of fluency by a judge, as a share of its scale; None where none rates it. Where one does, it
            decides and the ratio does not: being in character may look unlikely to the unsteered model.
    """

    ratio: float = MAX_FLUENCY
    loss: float | None = None

    def __str__(self) -> str:
        return f"{self.ratio:g}" if self.loss is None else f"a loss of {100 * self.loss:g} % of the judge's scale"


@dataclass(frozen=True)
class TriedDose:
    """What a γ did on the questions held back.

    Args:
        gamma: The dose.
        effect: Mean change of the judge's score in the direction of the pole.
        fluency: Perplexity ratio.
        loss: Of fluency by a judge, as a share of its scale; None where none rates it.
        changes: Of the score towards the pole, one a question; nan where the judge failed.
        budget: What the dose may cost.
    """

    gamma: float
    effect: Estimate
    fluency: Estimate
    loss: Estimate | None = None
    changes: tuple[float, ...] = ()
    budget: DoseBudget = DoseBudget()

    @property
    def affordable(self) -> bool:
        """Whether the whole interval of the cost lies within the budget."""
        if self.loss is not None and self.budget.loss is not None:
            return self.loss.high <= self.budget.loss
        return self.fluency.high <= self.budget.ratio

    @property
    def cost(self) -> float:
        """The upper end of what decides."""
        return self.loss.high if self.loss is not None and self.budget.loss is not None else self.fluency.high

    def __str__(self) -> str:
        low, mean, high = (f"{value:.2f}" for value in (self.fluency.low, self.fluency.mean, self.fluency.high))
        said = f"γ {self.gamma:g}, effect {self.effect} at {mean} [{low}, {high}] times the perplexity"
        return said if self.loss is None else f"{said}, fluency {-self.loss.mean:+.3f} of the judge's scale"


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
        judge: Rates the trait; the local one is trained on the transcripts of identification.
        decoding: How answers are decoded.
        progress: Told how many more answers are there.
        budget: What a dose may cost.
        fluency_judge: Rates how well answers are written; None where none does.
        kept: Answers that were given already; None keeps none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        base_model: BaseModel,
        texts: list[str],
        judge: Judge,
        decoding: Decoding,
        progress: Progress | None,
        budget: DoseBudget = DoseBudget(),
        fluency_judge: Judge | None = None,
        kept: KeptAnswers | None = None,
    ) -> None:
        self._model, self._tokenizer, self._base_model = model, tokenizer, base_model
        self._texts, self._judge, self._decoding, self.progress = texts, judge, decoding, progress
        self._budget, self._fluency_judge = budget, fluency_judge
        self._thinking = Thinking.of(tokenizer)
        self._kept = kept or KeptAnswers()
        self._decides = digest(what_decides(model, tokenizer, base_model, decoding), texts)
        answers = self._answers()
        self._score, self._nll, self._written = (
            self._scores(answers, judge),
            self._costs(answers),
            self._wording(answers),
        )

    def measure(self, trait: TraitRecord, pole: Pole, gamma: float) -> TriedDose:
        """Steers to a pole as the trait says, at a dose, and asks all questions."""
        poles = {**trait.poles, pole: with_dose(trait.poles[pole], gamma)}
        # Nothing else is in it: a dense part of another trait need not be looked for.
        alone = PersonalityAdapter(self._base_model, {trait.name: replace(trait, poles=poles)})
        spec = PersonalitySpec((Term(trait.name, pole),))
        answers = self._answers(spec, alone)
        return first_does(lambda: self._tried(gamma, answers, pole))

    def compare(self, answers: Sequence[Answer], pole: Pole) -> tuple[Estimate, Estimate]:
        """Effect towards a pole and perplexity ratio of answers to the questions, against the unsteered ones.

        Where several processes share the work they are the first one's, so that all decide alike.
        """
        tried = first_does(lambda: self._tried(0.0, answers, pole))
        return tried.effect, tried.fluency

    def _tried(self, gamma: float, answers: Sequence[Answer], pole: Pole) -> TriedDose:
        changes = (self._scores(answers, self._judge) - self._score) * (1 if pole is Pole.HIGH else -1)
        there = changes[~np.isnan(changes)]
        if not there.size:
            raise NptiError("The judge rated none of the answers under both the unsteered model and a dose; see why.")
        loss, written = None, self._wording(answers)
        if self._written is not None and written is not None:
            losses = (self._written - written)[~np.isnan(self._written - written)]
            loss = _rounded(bootstrap_mean(losses)) if losses.size else None
        ratio = exponential(bootstrap_mean(self._costs(answers) - self._nll))
        effect = _rounded(bootstrap_mean(there))
        return TriedDose(gamma, effect, _rounded(ratio), loss, tuple(changes.tolist()), self._budget)

    def _answers(self, spec: PersonalitySpec | None = None, adapter: PersonalityAdapter | None = None) -> list[Answer]:
        """Of the unsteered model, unless an adapter plays a personality."""
        steered = None if adapter is None else (str(spec), adapter_digest(adapter))

        def asked() -> list[Answer]:
            prompts = [Prompt(text) for text in self._texts]
            if adapter is None:
                return generate_answers(self._model, self._tokenizer, prompts, self._decoding, self.progress)
            with load_personality(self._model, spec, adapter, thinking=self._thinking):
                return generate_answers(self._model, self._tokenizer, prompts, self._decoding, self.progress)

        return self._kept.given_or(digest(self._decides, steered), len(self._texts), self.progress, asked)

    def _scores(self, answers: Sequence[Answer], judge: Judge) -> NDArray[np.float64]:
        """Scores drawn to 0 to 1, nan where the judge failed."""
        judgements = judge.judge(self._texts, [answer.text for answer in answers])
        scores = np.array([np.nan if said.score is None else said.score for said in judgements], dtype=np.float64)
        return np.asarray((scores - judge.lowest) / (judge.highest - judge.lowest))

    def _wording(self, answers: Sequence[Answer]) -> NDArray[np.float64] | None:
        """How well answers are written by a judge, where one rates it."""
        return None if self._fluency_judge is None else self._scores(answers, self._fluency_judge)

    def _costs(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        return answer_nll(self._model, self._tokenizer, self._texts, answers, self._decoding.batch_size)


def _rounded(estimate: Estimate) -> Estimate:
    return Estimate(round(estimate.mean, DIGITS), round(estimate.low, DIGITS), round(estimate.high, DIGITS))
