"""The model card of an adapter, from a template, with the Hub's metadata; and telling one that was edited by hand."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.records import FITTED, HYBRID, MEAN_SHIFT, NPTI, RESIDUAL, TraitRecord
from npti_export.traits import Pole, in_canonical_order

TEMPLATE = "card.md.jinja"
NOT_MEASURED = "not measured"
NOT_KNOWN = "not known"
ADDRESS = "path/to/this/folder"
"""What the example gives as the adapter where its Hub repository is not known."""
_METRICS = {
    "effect": "effect",
    "placebo": "effect of as many random neurons",
    "prompt": "effect of a persona in the prompt",
    "fluency": "perplexity ratio",
}
"""What scores hold of a pole, each as mean, low and high, and what it is called in the Hub's index of results."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LAST_LINE = "<!-- Written by npti-export; once it is edited it is kept as it is. SHA-256 of the above: {} -->\n"


def card_text(model: BaseModel, traits: Mapping[str, TraitRecord], address: str = ADDRESS) -> str:
    """The text of README.md: metadata, how to load it, what was measured (or "not measured"), method, limits.

    Args:
        model: The base model.
        traits: The adapter's traits.
        address: The Hub repository, for the example.
    """
    names = in_canonical_order(traits)
    on_hub = _HUB_ID.fullmatch(model.id) is not None
    poles = [(traits[name], pole) for name in names for pole in Pole]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    body = environment.get_template(TEMPLATE).render(
        id=_plain(model.id),
        on_hub=on_hub,
        model=json.dumps(model.id if on_hub else f"path/to/{model.id}"),
        address=json.dumps(address),
        personality=f"{names[0]}+" if names else "neutral",
        measured=[row for trait, pole in poles for row in _measured(trait, pole)],
        bleed=[row for trait, pole in poles for row in _others(trait, pole, "bleed", "{:+.2f}")],
        capability=[row for trait, pole in poles for row in _others(trait, pole, "capability", "{:+.1f}")],
        made=[_made(traits[name]) for name in names],
        sure=[row for trait, pole in poles for row in _sure(trait, pole)],
        methods=sorted({_method(trait, pole) for trait, pole in poles}),
    )
    results = [result for trait, pole in poles for result in _results(trait, pole)]
    data = ModelCardData(
        base_model=model.id if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        eval_results=results or None,
        library_name="npti-export",
        model_name=f"Personalities for {model.id}" if results else None,
        pipeline_tag="text-generation",
        tags=["personality", "steering", "npti", *names],
    )
    above = str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n\n"))
    return above + _last_line(above.encode())


def is_generated(card: bytes) -> bool:
    """Whether a card stands as :func:`card_text` wrote it, in this release or another."""
    above, newline, last = card.removesuffix(b"\n").rpartition(b"\n")
    return last + b"\n" == _last_line(above + newline).encode()


def _scores(trait: TraitRecord, pole: Pole) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What evaluations measured of a pole, by judge; an adapter from elsewhere may hold anything there."""
    for judge, scores in sorted(trait.poles[pole].scores.items()):
        if isinstance(scores, dict):
            yield _plain(judge), scores


def _measured(trait: TraitRecord, pole: Pole) -> list[list[str]]:
    """Rows of the table of measurements: one a judge that scored the pole, or one that says that none did."""
    record = trait.poles[pole]
    dose = f"{record.gamma:g}" + ("" if record.calibrated else " (not calibrated)")
    start = [f"`{trait.name}{pole.sign}`", f"{len(record.neurons):,}", dose]
    rows = []
    for judge, scores in _scores(trait, pole):
        if not _METRICS.keys() & scores.keys():  # benchmarks alone have a table of their own
            continue
        measured = [figure(scores.get(what), "{:+.2f}") for what in ("effect", "placebo", "prompt")]
        questions = scores.get("questions")
        who = judge + (f", {questions} questions" if isinstance(questions, int) else "")
        rows.append([*start, who, *measured, figure(scores.get("fluency"), "{:.2f}")])
    return rows or [[*start, *[NOT_MEASURED] * 5]]


def _others(trait: TraitRecord, pole: Pole, what: str, form: str) -> list[list[str]]:
    """Rows of a table of what else moved: other traits (bleed) or benchmarks (capability), where that was measured."""
    return [
        [f"`{trait.name}{pole.sign}`", judge, _plain(other), figure(scores[what][other], form)]
        for judge, scores in _scores(trait, pole)
        if isinstance(scores.get(what), dict)
        for other in sorted(scores[what])
    ]


def _results(trait: TraitRecord, pole: Pole) -> Iterator[EvalResult]:
    """What was measured of a pole, for the Hub's index of results (``model-index``)."""
    for judge, scores in _scores(trait, pole):
        for metric, called in _METRICS.items():
            if (interval := _interval(scores.get(metric))) is not None:
                mean, low, high = interval
                yield EvalResult(
                    task_type="text-generation",
                    task_name="Personality",
                    dataset_type="personality-questions",
                    dataset_name=f"Questions on {trait.name}, judge: {judge}",
                    dataset_config=f"{trait.name}, {judge}",
                    dataset_split="test",
                    metric_type=metric,
                    metric_name=f"{trait.name}{pole.sign}: {called} [{low:g}, {high:g}]",
                    metric_value=mean,
                )


def _made(trait: TraitRecord) -> list[str]:
    """The row that says where a trait came from."""
    made = trait.identification
    tokens = [made.tokens.get(str(pole), 0) for pole in Pole]
    reliability = made.split_half_reliability
    return [
        trait.name,
        made.source,
        f"{made.transcripts:,}" if made.transcripts else NOT_KNOWN,
        " / ".join(f"{count:,}" for count in tokens) if any(tokens) else NOT_KNOWN,
        NOT_MEASURED if reliability is None else f"{reliability:.3f}",
    ]


def _sure(trait: TraitRecord, pole: Pole) -> Iterator[list[str]]:
    """The row that says how sure the choice of a pole's neurons is, where that is known."""
    made = trait.identification
    overlap, margin = ((known or {}).get(str(pole)) for known in (made.selection_overlap, made.delta_margin))
    if overlap is not None or margin is not None:
        figures = (NOT_MEASURED if figure is None else f"{figure:.3f}" for figure in (overlap, margin))
        yield [f"`{trait.name}{pole.sign}`", *figures]


def _method(trait: TraitRecord, pole: Pole) -> str:
    """How a pole's neurons were chosen and what moves them, as half a sentence."""
    method = trait.poles[pole].method
    by_mean = f"neurons of effect size {method.min_effect_size} or more, moved by γ times the difference of the means"
    dense = "γ times the difference of the means of the residual stream, added to it after some layers"
    rules = {
        MEAN_SHIFT: by_mean,
        RESIDUAL: dense,
        HYBRID: f"{by_mean}; and {dense}",
        FITTED: "γ times vectors added to the residual stream after some layers, fitted so that the model without "
        "persona writes what it wrote in character",
        NPTI: f"neurons whose δ is {method.min_difference:g} or more (or the largest, where those are few), with γ · "
        f"target · f(δ) added: the target is their percentile {method.percentile:g}, f(δ) a sigmoid of steepness "
        f"{method.steepness:g} around {method.midpoint:g}",
    }
    return f"`{method.name}`: {rules[method.name]}."


def figure(value: Any, form: str) -> str:
    """A score as text; what an adapter from elsewhere does not hold as mean, low and high was not measured.

    Args:
        value: What stands in ``scores``.
        form: How a number is written.

    >>> figure([0.5, 0.25, 0.75], "{:+.2f}"), figure("large", "{:+.2f}")
    ('+0.50 [+0.25, +0.75]', 'not measured')
    """
    interval = _interval(value)
    if interval is None:
        return NOT_MEASURED
    mean, low, high = map(form.format, interval)
    return f"{mean} [{low}, {high}]"


def _interval(value: Any) -> tuple[float, float, float] | None:
    match value:
        case [int() | float() as mean, int() | float() as low, int() | float() as high]:
            if max(map(abs, (mean, low, high))) <= sys.float_info.max:  # JSON's whole numbers have no bound
                return mean, low, high
    return None


def _plain(text: str) -> str:
    """Somebody's text as it can stand in a line or cell of Markdown, where it is no markup."""
    return re.sub(r"([|`<>\[\]*\\])", r"\\\1", " ".join(text.split()))


def _last_line(above: bytes) -> str:
    return _LAST_LINE.format(hashlib.sha256(above).hexdigest())
