"""The budget of capability: a dose that loses too much on benchmarks is brought down until it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.evaluation.capability import measure_capability
from npti_export.evaluation.dose.trial import with_dose
from npti_export.traits import PersonalitySpec, Pole, Term

MAX_POINTS = 2.0
"""Points of a hundred that a recommended dose may lose."""
SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)
"""Of the dose that effect and fluency recommend, tried one after the other."""


@dataclass(frozen=True)
class Capable:
    """What the recommended dose of one pole loses on benchmarks.

    Args:
        personality: The pole, such as ``openness+``.
        share: Of the dose that effect and fluency recommend; the smallest of SHARES where none keeps within the budget.
        task: The task and metric that lose most at that share.
        points: What it loses there, in points of a hundred, negative where it wins; mean over documents.
        affordable: Whether that is within the budget.
    """

    personality: str
    share: float
    task: str
    points: float
    affordable: bool


def within_capability(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: PersonalityAdapter,
    traits: Sequence[str],
    tasks: Sequence[str],
    max_points: float = MAX_POINTS,
    batch_size: int = 32,
    done: Callable[[], None] = lambda: None,
) -> tuple[PersonalityAdapter, tuple[Capable, ...]]:
    """Brings doses down until no task loses more than the budget, on the mean over its documents.

    The mean decides and not the interval: of a few hundred documents its end lies some points off whatever is steered.
    All of a task's metrics count, and larger is taken to be better.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        adapter: With the doses that effect and fluency recommend.
        traits: Whose poles are looked at.
        tasks: As :func:`measure_capability` takes them.
        max_points: What may be lost, in points of a hundred.
        batch_size: Rows worked on at once.
        done: Called when another personality is measured.

    Returns:
        The adapter with the doses that keep within the budget, and what each pole loses.

    Raises:
        NptiError: If lm-eval is not installed, or a task is not known.
    """
    left = [Term(name, pole) for name in traits for pole in Pole]
    found: dict[Term, Capable] = {}
    whole = adapter
    for share in SHARES:
        for term in left:
            adapter = _lowered(adapter, whole, term, share)
        specs = {str(PersonalitySpec((term,))): term for term in left}
        measured = measure_capability(model, tokenizer, adapter, list(specs), tasks, batch_size, done=done)
        for spec, term in specs.items():
            lost = [(-score.change.mean, f"{score.task} {score.metric}") for score in measured.of(spec) if score.change]
            points, task = max(lost)
            found[term] = Capable(spec, share, task, points, points <= max_points)
        left = [term for term in left if not found[term].affordable]
        if not left:
            break
    return adapter, tuple(found.values())


def _lowered(adapter: PersonalityAdapter, whole: PersonalityAdapter, term: Term, share: float) -> PersonalityAdapter:
    """The adapter with a share of the whole one's dose at one pole."""
    if share == 1.0:
        return adapter
    trait, record = adapter.traits[term.trait], whole.traits[term.trait].poles[term.pole]
    poles = {**trait.poles, term.pole: with_dose(record, record.gamma * share)}
    return adapter.with_trait(replace(trait, poles=poles))
