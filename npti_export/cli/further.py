"""Measurements beside the judges': benchmarks by lm-eval and an inventory, with the options that ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from npti_export.cli import loading
from npti_export.errors import NptiError

if TYPE_CHECKING:
    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.evaluation.inventory_file import Inventory

tasks = click.option(
    "--tasks",
    help="Benchmarks of lm-eval, each pole beside unsteered: gsm8k,mmlu or other names, or task files (YAML).",
)
inventory = click.option(
    "--inventory",
    "inventory_file",
    type=click.Path(path_type=Path),
    help="A questionnaire that the model fills in about itself: CSV with label_raw, text, label_ocean, key.",
)


def task_names(text: str | None) -> list[str]:
    """The tasks in a list with commas; none where it was not given.

    Raises:
        NptiError: If a task file is not there, the list is empty, or lm-eval is not installed.

    >>> task_names(None)
    []
    """
    if text is None:
        return []
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise NptiError(f"{text!r} names no task; give names that lm-eval knows, or task files, with commas.")
    for name in names:
        if name.endswith((".yaml", ".yml")) and not Path(name).is_file():
            raise NptiError(f"There is no task file {name}; give a file of lm-eval's format, or a task's name.")
    if find_spec("lm_eval") is None:
        raise NptiError("Benchmarks need lm-eval; install it with: pip install 'npti-export[capability]'.")
    return names


def check_pictures(output: Path | None) -> None:
    """Refuses a report before any work where nothing can draw it."""
    if output is not None and find_spec("matplotlib") is None:
        raise NptiError("A report needs matplotlib; install it with: pip install 'npti-export[plot]'.")


def sections(
    model: Any,
    tokenizer: Any,
    adapter: PersonalityAdapter,
    personalities: Sequence[str],
    tasks: Sequence[str],
    asked: Inventory | None,
    batch_size: int,
    quiet: bool,
) -> dict[str, Any]:
    """Measures what was asked for, and where the adapter acts, as sections of an evaluation.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        adapter: Holds the personalities.
        personalities: Specs such as ``openness+``.
        tasks: Of lm-eval; none leaves benchmarks out.
        asked: The inventory; None leaves it out.
        batch_size: Rows worked on at once.
        quiet: Whether to show no progress.
    """
    from npti_export.evaluation.report.neurons_section import neurons_section

    found = {"neurons": neurons_section(adapter)}
    if asked is not None:
        from npti_export.evaluation.inventory import measure_inventory, most_letters

        letters = most_letters(len(asked.items), len(personalities))
        with loading.stage("inventory", letters, quiet) as progress:
            result = measure_inventory(model, tokenizer, adapter, personalities, asked, batch_size, progress)
        found["inventory"] = result.section()
    if tasks:
        from npti_export.evaluation.capability import measure_capability

        with loading.stage("benchmarks", len(personalities) + 1, quiet) as progress:
            capability = measure_capability(
                model, tokenizer, adapter, personalities, tasks, batch_size, done=lambda: progress(1)
            )
        found["capability"] = capability.section()
    return found


def print_sections(found: dict[str, Any]) -> None:
    """Benchmarks and self-reports as tables on the terminal."""
    from rich.table import Table

    if capability := found.get("capability"):
        table = Table("personality", "task", "metric", "documents", "score", "change in points [95 %]")
        for score in capability["scores"]:
            value = f"{100 * score['value']:.1f} ± {100 * score['error']:.1f}"
            texts = (score["personality"], score["task"], score["metric"], str(score["documents"]), value)
            table.add_row(*texts, _figure(score["change"], "{:+.1f}"))
        loading.print_table(table)
    if inventory := found.get("inventory"):
        click.echo("Self-report, secondary: what the model says of itself in a questionnaire, 1 to 5.")
        table = Table("personality", *inventory["reports"][0]["traits"], "probability of the options")
        for report in inventory["reports"]:
            cells = [_figure(scale["mean"], "{:.2f}") for scale in report["traits"].values()]
            table.add_row(report["personality"], *cells, f"{report['on_options']:.2f}")
        loading.print_table(table)


def _figure(estimate: dict[str, float] | None, form: str) -> str:
    if estimate is None:
        return ""
    mean, low, high = (form.format(estimate[part]) for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
