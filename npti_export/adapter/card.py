"""The model card of an adapter, from a template, with the Hub's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.records import TraitRecord

TEMPLATE = "card.md.jinja"


def card_text(model: BaseModel, traits: Mapping[str, TraitRecord]) -> str:
    """The text of README.md: metadata, how to load it, what was measured (or "not measured"), limits.

    Args:
        model: The base model.
        traits: The adapter's traits.
    """
    data = ModelCardData(
        base_model=model.id if "/" in model.id else None,
        library_name="npti-export",
        pipeline_tag="text-generation",
        tags=["personality", "steering", "npti", *traits],
        base_model_relation="adapter",
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    body = environment.get_template(TEMPLATE).render(model=model, traits=traits)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))
