"""``npti-export explain``: what the neurons and vectors of an adapter stand for."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from npti_export.cli import loading, options

if TYPE_CHECKING:
    from npti_export.identification.explanation import ExplainedPole

_NEURON = re.compile(r"(\d+):(\d+)")


def _neurons(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> list[tuple[int, int]]:
    found = [(value, _NEURON.fullmatch(value)) for value in values]
    for value, match in found:
        if not match:
            raise click.BadParameter(f"{value!r} is no neuron; layer and index are expected, such as 15:12975.")
    return [(int(match[1]), int(match[2])) for _, match in found if match]


@click.command("explain", epilog="Example: npti-export explain --trait extraversion --top 5")
@click.argument("adapter", required=False)
@options.trait
@click.option(
    "--neuron", "neurons", multiple=True, callback=_neurons, help="Such as 15:12975; may be given repeatedly."
)
@click.option(
    "--top", type=click.IntRange(1), default=20, show_default=True, help="Neurons a pole, largest delta first."
)
@click.option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write a page too, to this file.")
@options.model
@options.device
@options.dtype
@options.batch_size
@options.quiet
@options.as_json
def command(
    adapter: str | None,
    traits: tuple[str, ...],
    neurons: list[tuple[int, int]],
    top: int,
    page: Path | None,
    model_name: str | None,
    device: str,
    dtype: str,
    batch_size: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Put neurons into words: what they promote and suppress, their delta, and where in the answers they fire most.

    Words are read off a neuron's output direction by the model's own last norm and head. Passages and intervals come
    from the transcripts and statistics beside the adapter, where there are any. The vectors of the methods residual and
    hybrid are read likewise. ADAPTER is a folder or a Hub repository.
    """
    model, tokenizer = loading.load_model(model_name, device, dtype, quiet)

    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.adapter.find import find_adapter
    from npti_export.identification.explanation import explain_pole
    from npti_export.identification.files import TraitFiles
    from npti_export.steering.sites import base_model_id, describe_base_model, find_sites

    loading.hush_hub(as_json)
    name = adapter or str(find_adapter(base_model_id(model)))
    loaded = PersonalityAdapter.from_pretrained(name, traits=[trait.lower() for trait in traits] or None)
    sites = find_sites(model)
    if warning := loaded.base_model.check_fit(describe_base_model(model, sites)):
        warnings.warn(warning, stacklevel=2)
    explained = {}
    for trait, record in loaded.traits.items():
        files = TraitFiles(Path(name), trait)
        with loading.stage(f"{trait}: explain", 2, quiet) as progress:
            for pole, of_pole in record.poles.items():
                explained[f"{trait}{pole.sign}"] = explain_pole(
                    model, tokenizer, sites, of_pole, pole, files, neurons or top, batch_size
                )
                progress(1)
    if page:
        from npti_export.evaluation.report.explanation_page import write_explanation_page

        write_explanation_page(page, Path(name).name, loaded.base_model.id, explained)
        loading.notice(f"The page is {page}.", quiet)
    if as_json:
        shown = {personality: asdict(of_pole) for personality, of_pole in explained.items()}
        click.echo(json.dumps({"adapter": name, "personalities": shown}, indent=2, ensure_ascii=False))
        return
    for personality, found in explained.items():
        _print(personality, found)


def _print(personality: str, found: ExplainedPole) -> None:
    from rich.markup import escape
    from rich.table import Table

    from npti_export.evaluation.report.explanation_page import delta

    def listed(words: tuple[str, ...]) -> str:
        return escape(" ".join(_plain(word.strip()) for word in words if word.strip()))

    click.echo(f"{personality}: {found.chosen:,} neurons, {len(found.vectors)} vectors")
    table = Table("where", "δ", "promotes", "suppresses")
    table.columns[0].no_wrap = True
    for vector in found.vectors:
        table.add_row(
            f"behind layer {vector.layer}", "", listed(vector.words.promotes), listed(vector.words.suppresses)
        )
    for neuron in found.neurons:
        table.add_row(
            f"{neuron.layer}:{neuron.index}",
            delta(neuron),
            listed(neuron.words.promotes),
            listed(neuron.words.suppresses),
        )
        for passage in neuron.passages:
            before, token, after = (escape(_plain(part)) for part in (passage.before, passage.token, passage.after))
            table.add_row("", f"{passage.activation:+.2f} {passage.pole}", f"… {before}[bold]{token}[/]{after} …")
    if table.row_count:
        loading.print_table(table)


def _plain(text: Any) -> str:
    """Text of a model or a file without what a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in str(text))
