"""What the neurons of an adapter stand for, as a page of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from npti_export.evaluation.report.pages import rendered
from npti_export.identification.explanation import ExplainedPole, NeuronExplanation
from npti_export.identification.files import write_beside

TEMPLATE = "explanation.html.jinja"


def write_explanation_page(path: Path, adapter: str, model: str, poles: Mapping[str, ExplainedPole]) -> None:
    """Writes the page, beside its place first.

    Args:
        path: Where.
        adapter: Name of the adapter.
        model: Of its base model.
        poles: What was found, by personality such as ``openness+``.

    Raises:
        NptiError: If it cannot be written.
    """
    filters: dict[str, Callable[..., str]] = {"words": words, "delta": delta}
    write_beside(path, rendered(TEMPLATE, filters, adapter=adapter, model=model, poles=poles).encode())


def words(tokens: Sequence[str]) -> str:
    """Tokens one after the other, without those that are only blanks.

    >>> words((" tea", " ", "!"))
    'tea · !'
    """
    return " · ".join(token.strip() for token in tokens if token.strip())


def delta(neuron: NeuronExplanation) -> str:
    """Delta with its interval, as far as they are known."""
    if neuron.delta is None:
        return "unknown"
    return f"{neuron.delta:+.3f}" + ("" if neuron.margin is None else f" ± {neuron.margin:.3f}")
