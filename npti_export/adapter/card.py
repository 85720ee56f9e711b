"""The model card of an adapter, from a template, with the Hub's metadata; and telling one that was edited by hand."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.records import TraitRecord
from npti_export.traits import Pole, in_canonical_order

TEMPLATE = "card.md.jinja"
NOT_MEASURED = "not measured"
ADDRESS = "path/to/this/folder"
"""What the example gives as the adapter where its Hub repository is not known."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LAST_LINE = "<!-- Written by npti-export; once it is edited it is kept as it is. SHA-256 of the above: {} -->\n"


def card_text(model: BaseModel, traits: Mapping[str, TraitRecord], address: str = ADDRESS) -> str:
    """The text of README.md: metadata, how to load it, what was measured (or "not measured"), limits.

    Args:
        model: The base model.
        traits: The adapter's traits.
        address: The Hub repository, for the example.
    """
    names = in_canonical_order(traits)
    on_hub = _HUB_ID.fullmatch(model.id) is not None
    data = ModelCardData(
        base_model=model.id if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        library_name="npti-export",
        pipeline_tag="text-generation",
        tags=["personality", "steering", "npti", *names],
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    body = environment.get_template(TEMPLATE).render(
        model=model,
        on_hub=on_hub,
        address=address,
        personality=f"{names[0]}+" if names else "neutral",
        traits=[traits[name] for name in names],
        measured=[row for name in names for pole in Pole for row in _measured(traits[name], pole)],
    )
    above = f"---\n{data.to_yaml().strip()}\n---\n\n{body.strip()}\n\n"
    return above + _last_line(above.encode())


def is_generated(card: bytes) -> bool:
    """Whether a card stands as :func:`card_text` wrote it, in this release or another."""
    above, newline, last = card.removesuffix(b"\n").rpartition(b"\n")
    return last + b"\n" == _last_line(above + newline).encode()


def _measured(trait: TraitRecord, pole: Pole) -> list[list[str]]:
    """Rows of the table of measurements: one a judge that scored the pole, or one that says that none did."""
    record = trait.poles[pole]
    dose = f"{record.gamma:g}" + ("" if record.calibrated else " (not calibrated)")
    start = [f"`{trait.name}{pole.sign}`", f"{len(record.neurons):,}", dose]
    judges = sorted(judge for judge, scores in record.scores.items() if isinstance(scores, dict))
    if not judges:
        return [[*start, *[NOT_MEASURED] * 5]]
    rows = []
    for judge in judges:
        figure = partial(_figure, record.scores[judge])
        questions = record.scores[judge].get("questions")
        who = judge + (f", {questions} questions" if isinstance(questions, int) else "")
        signed = [figure(what, "{:+.2f}") for what in ("effect", "placebo", "prompt")]
        rows.append([*start, who, *signed, figure("fluency", "{:.2f}")])
    return rows


def _figure(scores: Mapping[str, Any], what: str, form: str) -> str:
    """Mean and interval; what an adapter from elsewhere does not hold in that form was not measured."""
    match scores.get(what):
        case [int() | float() as mean, int() | float() as low, int() | float() as high]:
            return f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]"
    return NOT_MEASURED


def _last_line(above: bytes) -> str:
    return _LAST_LINE.format(hashlib.sha256(above).hexdigest())
