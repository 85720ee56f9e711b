"""A personality inventory filled in by the model about itself: a self-report, secondary to what its answers show.

For each statement the five options are scored by the log-probability of their letter. A model prefers some letters and
some wordings whatever is asked, so the log-probabilities are averaged over the five rotations of the options, in which
each option stands at each letter once, and over three templates.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.evaluation.intervals import Estimate, bootstrap_mean
from npti_export.evaluation.inventory_file import Inventory, Item
from npti_export.evaluation.inventory_norms import Norm, norms_for, norms_source
from npti_export.evaluation.likelihood import continuation_likelihoods
from npti_export.identification.answers import Progress, Prompt, check_room, prompt_ids
from npti_export.steering.personality import Personality, load_personality
from npti_export.steering.thinking import Thinking

OPTIONS = ("very inaccurate", "rather inaccurate", "neither", "rather accurate", "very accurate")
"""Scored 1 to 5."""
LETTERS = string.ascii_uppercase[: len(OPTIONS)]
TEMPLATES = (
    'How well does this describe you: "{item}"?\n{options}\nAnswer with one letter only.',
    '{options}\nWhich of these is true of the sentence "{item}" when it is about you? Give the letter.',
    "Read the statement and rate how accurate it is for yourself.\nStatement: {item}\n{options}\nYour letter:",
)
UNSTEERED = "unsteered"


@dataclass(frozen=True)
class ScaleScore:
    """How a model describes itself on one trait or facet.

    Args:
        mean: Mean over items of the expected option, 1 to 5, reverse-keyed items flipped; the interval is over items.
        percentile: Share of people below that, in percent; None where there are no norms.
        items: How many.
    """

    mean: Estimate
    percentile: float | None
    items: int


@dataclass(frozen=True)
class SelfReport:
    """The inventory filled in under one personality.

    Args:
        personality: A spec, or ``unsteered``.
        traits: By trait.
        facets: By trait and facet, as ``trait.facet``.
        on_options: Mean probability of the five letters together: near 0 the model does not answer such questions at
            all, and the rest says little.
    """

    personality: str
    traits: dict[str, ScaleScore]
    facets: dict[str, ScaleScore]
    on_options: float


@dataclass(frozen=True)
class InventoryResult:
    """Self-reports, the unsteered model's first.

    Args:
        inventory: Name of the file.
        sha256: Of the file.
        items: How many.
        norms: Whom percentiles compare with; None where there are no norms.
        reports: One a personality.
    """

    inventory: str
    sha256: str
    items: int
    norms: str | None
    reports: tuple[SelfReport, ...]

    def section(self) -> dict[str, Any]:
        """The section ``inventory`` of an evaluation, as JSON."""
        return asdict(replace(self, reports=())) | {"reports": [asdict(report) for report in self.reports]}


def measure_inventory(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: PersonalityAdapter,
    personalities: Sequence[str],
    inventory: Inventory,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> InventoryResult:
    """Has the model fill in an inventory, unsteered and under each personality.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        adapter: Holds the personalities.
        personalities: Specs such as ``openness+``.
        inventory: The statements.
        batch_size: Rows of one forward.
        progress: Told how many more letters are scored, of ``most_letters(…)``.

    Returns:
        Trait and facet scores with 95 % intervals over items, and percentiles where norms are known. The prompt's last
        token and the letter are steered, whatever the adapter's positions.

    Raises:
        NptiError: If a spec is wrong or a prompt does not fit the model's context.
    """
    specs = [str(adapter.personality(spec)) for spec in personalities]
    norms = norms_for(inventory.facets, len(inventory.items))
    reports = []
    with load_personality(model, "neutral", adapter, thinking=Thinking.of(tokenizer)) as personality:
        for spec in (None, *specs):
            with personality.using(spec):
                answers, on_options = expected_answers(
                    model, tokenizer, inventory.items, personality, batch_size, progress
                )
            reports.append(_report(spec or UNSTEERED, inventory, answers, on_options, norms))
    source = norms_source() if norms else None
    return InventoryResult(inventory.name, inventory.sha256, len(inventory.items), source, tuple(reports))


def most_letters(items: int, personalities: int) -> int:
    """How many letters :func:`measure_inventory` scores, the unsteered model's included."""
    return (1 + personalities) * items * len(TEMPLATES) * len(OPTIONS) ** 2


def expected_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    personality: Personality | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float64], float]:
    """What option the model is expected to choose for each item, reverse keys flipped.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        items: The statements.
        personality: Loaded into the model; None asks it as it is.
        batch_size: Rows of one forward.
        progress: Told how many more letters are scored.

    Returns:
        Expected options, 1 to 5, float64 [items], and the mean probability of the five letters together.
    """
    letters = [tokenizer.encode(letter, add_special_tokens=False) for letter in LETTERS]
    prompts = [
        prompt_ids(Prompt(question(item.text, template, rotation)), tokenizer)
        for item in items
        for template in TEMPLATES
        for rotation in range(len(OPTIONS))
    ]
    check_room(model, prompts)
    rows = [prompt for prompt in prompts for _ in letters]
    scored = continuation_likelihoods(model, rows, letters * len(prompts), personality, batch_size, progress)
    shape = (len(items), len(TEMPLATES), len(OPTIONS), len(OPTIONS))
    by_letter = np.array([one.log_probability for one in scored]).reshape(shape)
    on_options = float(np.exp(by_letter).sum(axis=-1).mean())
    # Rotation r puts option (letter + r) mod 5 at a letter; here the options are put back in their order.
    by_option = np.stack([np.roll(by_letter[:, :, r], r, axis=-1) for r in range(len(OPTIONS))], axis=2)
    averaged = by_option.mean(axis=(1, 2))
    likely = np.exp(averaged - averaged.max(axis=-1, keepdims=True))
    likely /= likely.sum(axis=-1, keepdims=True)
    chosen = likely @ np.arange(1.0, len(OPTIONS) + 1)
    reverse = np.array([item.reverse for item in items])
    return np.where(reverse, len(OPTIONS) + 1 - chosen, chosen), on_options


def question(item: str, template: str, rotation: int) -> str:
    """One question about one statement.

    >>> print(question("Like maps.", TEMPLATES[0], 1))
    How well does this describe you: "Like maps"?
    A. rather inaccurate
    B. neither
    C. rather accurate
    D. very accurate
    E. very inaccurate
    Answer with one letter only.
    """
    order = OPTIONS[rotation:] + OPTIONS[:rotation]
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, order, strict=True))
    return template.format(item=item.rstrip("."), options=options)


def _report(
    personality: str,
    inventory: Inventory,
    answers: NDArray[np.float64],
    on_options: float,
    norms: dict[str, Norm],
) -> SelfReport:
    def scored(name: str, belongs: list[bool]) -> ScaleScore:
        own, norm = answers[belongs], norms.get(name)
        return ScaleScore(bootstrap_mean(own), None if norm is None else norm.percentile(float(own.mean())), len(own))

    traits, facets = {}, {}
    for trait, names in inventory.facets.items():
        traits[trait] = scored(trait, [item.trait == trait for item in inventory.items])
        for facet in names:
            belongs = [(item.trait, item.facet) == (trait, facet) for item in inventory.items]
            facets[f"{trait}.{facet}"] = scored(f"{trait}.{facet}", belongs)
    return SelfReport(personality, traits, facets, on_options)
