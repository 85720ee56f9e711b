"""Sums of personalities, each at its recommended dose: where together they cost more than one of them may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.evaluation.fluency import answer_nll
from npti_export.evaluation.intervals import Estimate, bootstrap_mean, exponential
from npti_export.evaluation.kept_answers import KeptAnswers, adapter_digest, what_decides
from npti_export.identification.answers import Answer, Decoding, Progress, Prompt, generate_answers
from npti_export.identification.files import digest
from npti_export.steering.personality import load_personality
from npti_export.steering.thinking import Thinking
from npti_export.traits import PersonalitySpec, Pole, Term


@dataclass(frozen=True)
class SumCost:
    """What a sum of personalities costs.

    Args:
        personality: Such as ``openness+,neuroticism-``.
        ratio: Perplexity ratio of its answers under the unsteered model.
        overdoses: Whether the mean ratio is above the budget.
    """

    personality: str
    ratio: Estimate
    overdoses: bool


def sums_to_check(adapter: PersonalityAdapter, traits: Sequence[str]) -> list[PersonalitySpec]:
    """All pairs of poles in which one of the traits stands, and all traits high and all low together.

    Sums whose poles steer different tokens or drop different shares cannot be played and are left out.

    Args:
        adapter: The adapter.
        traits: Those whose dose is new.
    """
    specs: list[tuple[Term, ...]] = []
    for one, other in combinations(adapter.traits, 2):
        if one in traits or other in traits:
            specs += [(Term(one, a), Term(other, b)) for a, b in product(Pole, Pole)]
    if len(adapter.traits) > len((Pole.HIGH, Pole.LOW)):
        specs += [tuple(Term(name, pole) for name in adapter.traits) for pole in Pole]
    return [PersonalitySpec(terms) for terms in specs if _go_together(adapter, terms)]


def check_sums(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: PersonalityAdapter,
    specs: Sequence[PersonalitySpec],
    questions: Sequence[str],
    decoding: Decoding,
    max_ratio: float,
    progress: Progress | None = None,
    kept: KeptAnswers | None = None,
) -> list[SumCost]:
    """Asks the same questions under every sum.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        adapter: The adapter.
        specs: What to check.
        questions: What is asked; of several traits, so that no sum is asked only what suits it.
        decoding: How answers are decoded.
        max_ratio: The budget of a single personality.
        progress: Told how many more answers are there, of ``(1 + specs) · questions``.
        kept: Answers that were given already; None keeps none.

    Returns:
        What each costs, the most expensive first.
    """
    prompts = [Prompt(question) for question in questions]
    thinking = Thinking.of(tokenizer)
    kept = kept or KeptAnswers()
    decides = digest(what_decides(model, tokenizer, adapter.base_model, decoding), list(questions))
    whole = adapter_digest(adapter)

    def nll_of(spec: PersonalitySpec | None) -> NDArray[np.float64]:
        def asked() -> list[Answer]:
            if spec is None:
                return generate_answers(model, tokenizer, prompts, decoding, progress)
            with load_personality(model, spec, adapter, thinking=thinking):
                return generate_answers(model, tokenizer, prompts, decoding, progress)

        key = digest(decides, None if spec is None else (str(spec), whole))
        answers = kept.given_or(key, len(prompts), progress, asked)
        return answer_nll(model, tokenizer, questions, answers, decoding.batch_size)

    base = nll_of(None)
    found = []
    for spec in specs:
        rise = nll_of(spec) - base
        ratio = exponential(bootstrap_mean(rise))
        found.append(SumCost(str(spec), ratio, ratio.mean > max_ratio))
    return sorted(found, key=lambda cost: -cost.ratio.mean)


def _go_together(adapter: PersonalityAdapter, terms: Sequence[Term]) -> bool:
    records = [adapter.traits[term.trait].poles[term.pole] for term in terms]
    return len({(record.positions, record.dropout) for record in records}) == 1
