"""The evaluation of one personality: the same questions to the unsteered model, the adapter and its controls."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.evaluation.fluency import answer_nll
from npti_export.evaluation.intervals import Estimate, bootstrap_mean, exponential
from npti_export.evaluation.judgement import Judgement
from npti_export.evaluation.placebo import placebo_of
from npti_export.identification.answers import Answer, Decoding, Progress, Prompt, generate_answers
from npti_export.steering.personality import load_personality
from npti_export.traits import PersonalitySpec, Pole, Term
from npti_export.traits.material import Persona, Question

EVALUATION_DECODING = Decoding(max_new_tokens=400, repetition_penalty=1.15)
UNSTEERED, ADAPTER, PLACEBO, PROMPT = "unsteered", "adapter", "placebo", "persona prompt"
CONDITIONS = (UNSTEERED, ADAPTER, PLACEBO, PROMPT)


class Judge(Protocol):
    """Scores answers on a scale from ``lowest`` (the trait's low end) to ``highest``."""

    lowest: float
    highest: float

    @property
    def name(self) -> str:
        """Which judge it is, for reports."""

    def judge(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """One judgement an answer, in their order."""


@dataclass(frozen=True)
class ConditionResult:
    """How one condition did on one personality.

    Args:
        condition: ``unsteered``, ``adapter``, ``placebo`` or ``persona prompt``.
        answers: One a question.
        judgements: One a question.
        score: Mean judge score.
        effect: Paired difference from the unsteered model in the pole's direction.
        fluency: Perplexity ratio of the answers under the unsteered model without persona, to the unsteered answers.
    """

    condition: str
    answers: tuple[str, ...]
    judgements: tuple[Judgement, ...]
    score: Estimate
    effect: Estimate
    fluency: Estimate

    @property
    def failed(self) -> int:
        """Judgements that the judge did not give."""
        return sum(judgement.score is None for judgement in self.judgements)


@dataclass(frozen=True)
class Report:
    """The evaluation of one personality.

    Args:
        personality: Its one term.
        judge: Which judge scored it.
        scale: Lowest and highest score.
        auc: Of the local judge, cross-validated; None for others.
        questions: What was asked.
        results: One a condition, by its name.
    """

    personality: str
    judge: str
    scale: tuple[float, float]
    auc: float | None
    questions: tuple[str, ...]
    results: dict[str, ConditionResult]

    def scores(self) -> dict[str, object]:
        """What goes into an adapter's config: effect, placebo, prompt and fluency, each mean, low and high."""
        adapter = self.results[ADAPTER]
        pairs = {
            "effect": adapter.effect,
            "placebo": self.results[PLACEBO].effect,
            "prompt": self.results[PROMPT].effect,
            "fluency": adapter.fluency,
        }
        numbers: dict[str, object] = {
            name: [round(x, 4) for x in (value.mean, value.low, value.high)] for name, value in pairs.items()
        }
        return numbers | {"questions": len(self.questions), "judge": self.judge}


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: PersonalityAdapter,
    term: Term,
    questions: Sequence[Question],
    personas: Sequence[Persona],
    judge: Judge,
    decoding: Decoding = EVALUATION_DECODING,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Asks the same questions under every condition and scores the answers.

    A judgement that failed is left out of the mean and of the difference, and counted; it is never given a score.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        adapter: The adapter.
        term: Which pole of which trait, and how strongly.
        questions: Questions that neither identification nor the judge's training saw.
        personas: For the prompt-only baseline; one of the pole is drawn for each question.
        judge: Scores the answers; it is not told which condition they come from.
        decoding: How answers are decoded.
        seed: Decides placebo neurons, drawn personas and bootstrap resamples.
        progress: Told how many more answers are there, of ``4 · questions``.

    Raises:
        NptiError: If the adapter does not hold the trait, there is no persona of the pole or no question, or the judge
            gave no score under some condition.
    """
    spec = adapter.personality(PersonalitySpec((term,)))
    texts = [question.text for question in questions]
    rng = random.Random(f"prompt {seed}")
    of_pole = [persona.text for persona in personas if persona.pole is term.pole]
    if not texts or not of_pole:
        raise NptiError(
            f"{spec}: {len(texts)} questions and {len(of_pole)} personas of its pole were given; both are needed."
        )
    plain = [Prompt(text) for text in texts]
    prompted = [Prompt(text, rng.choice(of_pole)) for text in texts]
    placebo = placebo_of(adapter, term.trait, seed)
    asks: dict[str, tuple[list[Prompt], PersonalityAdapter | None]] = {
        UNSTEERED: (plain, None),
        ADAPTER: (plain, adapter),
        PLACEBO: (plain, placebo),
        PROMPT: (prompted, None),
    }
    answers: dict[str, list[Answer]] = {}
    for condition, (prompts, steering) in asks.items():
        with load_personality(model, spec, steering) if steering else nullcontext():
            answers[condition] = generate_answers(model, tokenizer, prompts, decoding, progress)
    nll = {
        condition: answer_nll(model, tokenizer, texts, said, decoding.batch_size) for condition, said in answers.items()
    }
    judged = {condition: judge.judge(texts, [answer.text for answer in said]) for condition, said in answers.items()}
    results = {condition: _result(condition, answers, judged, nll, term.pole, seed) for condition in CONDITIONS}
    auc = getattr(judge, "auc", None)
    return Report(str(spec), judge.name, (judge.lowest, judge.highest), auc, tuple(texts), results)


def _result(
    condition: str,
    answers: dict[str, list[Answer]],
    judged: dict[str, list[Judgement]],
    nll: dict[str, NDArray[np.float64]],
    pole: Pole,
    seed: int,
) -> ConditionResult:
    """Means and paired differences over the questions that got a score under both conditions."""
    mine, base = _score_array(judged[condition]), _score_array(judged[UNSTEERED])
    both = ~np.isnan(mine) & ~np.isnan(base)
    if not both.any():
        failures = {judgement.failure for judgement in judged[condition] if judgement.failure}
        raise NptiError(
            f"The judge gave no score under {condition} ({'; '.join(sorted(failures)) or 'no reason given'})."
        )
    direction = 1.0 if pole is Pole.HIGH else -1.0
    return ConditionResult(
        condition,
        tuple(answer.text for answer in answers[condition]),
        tuple(judged[condition]),
        bootstrap_mean(mine[~np.isnan(mine)], seed),
        bootstrap_mean(direction * (mine - base)[both], seed),
        exponential(bootstrap_mean(nll[condition] - nll[UNSTEERED], seed)),
    )


def _score_array(judgements: Sequence[Judgement]) -> NDArray[np.float64]:
    return np.array([np.nan if judgement.score is None else judgement.score for judgement in judgements])
