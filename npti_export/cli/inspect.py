"""``npti-export inspect``: what an adapter holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from npti_export.cli import loading, options

if TYPE_CHECKING:
    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.adapter.records import PoleRecord

COLUMNS = ("personality", "neurons", "γ", "judge", "effect", "perplexity ratio")


@click.command("inspect", epilog="Example: npti-export inspect --plot npti-demo.png")
@click.argument("adapter", required=False)
@options.model
@click.option("--plot", type=click.Path(path_type=Path), help="Draw neurons by layer and delta by pole into this PNG.")
@options.as_json
def command(adapter: str | None, model_name: str | None, plot: Path | None, as_json: bool) -> None:
    """Show what an adapter holds: base model, traits, neurons, doses, what was measured, sizes and hashes.

    ADAPTER is a folder or a Hub repository; without it the one made for the model is looked for.
    """
    if plot and plot.suffix.lower() != ".png":
        raise click.UsageError(f"--plot writes a PNG; {plot.name!r} does not end in .png.")

    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.adapter.find import DEMO_ID, find_adapter, id_of_model_name
    from npti_export.adapter.hub import fetch_adapter

    loading.hush_hub(as_json)
    name = adapter or str(find_adapter(id_of_model_name(model_name) if model_name else DEMO_ID))
    folder = Path(name) if Path(name).is_dir() else fetch_adapter(name)
    loaded = PersonalityAdapter.from_pretrained(folder)
    config = _config_with_sizes(folder)
    if plot:
        from npti_export.adapter.plot import write_picture

        write_picture(loaded, plot)
    if as_json:
        click.echo(json.dumps({"adapter": name, **config}, indent=2))
        return
    _print(name, loaded, config)
    if plot:
        click.echo(f"Picture written to {plot}")


def _config_with_sizes(folder: Path) -> dict[str, Any]:
    """The adapter's config, which was read and checked before, with the bytes on disk of each file and of all."""
    from npti_export.adapter.files import CARD_NAME, CONFIG_NAME, MAX_CONFIG_BYTES, read_bytes

    config: dict[str, Any] = json.loads(read_bytes(folder / CONFIG_NAME, MAX_CONFIG_BYTES))
    traits = {
        name: {**trait, "bytes": (folder / trait["file"]).stat().st_size} for name, trait in config["traits"].items()
    }
    others = [folder / file for file in (CONFIG_NAME, CARD_NAME) if (folder / file).is_file()]
    total = sum(trait["bytes"] for trait in traits.values()) + sum(file.stat().st_size for file in others)
    return {**config, "traits": traits, "bytes": total}


def _print(name: str, adapter: PersonalityAdapter, config: Mapping[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from npti_export.adapter.records import NPTI

    base = adapter.base_model
    click.echo(_plain(f"{name}: personalities of {base.id}"))
    known = {"type": base.model_type, "revision": base.revision, "fingerprint": (base.fingerprint or "")[:12]}
    facts = [f"{base.num_layers} layers", f"{base.num_neurons:,} neurons"]
    facts += [f"{what} {value or 'unknown'}" for what, value in known.items()]
    click.echo(_plain(", ".join(facts)))
    table = Table(*COLUMNS)
    table.columns[0].no_wrap = True  # a name that is cut off could be that of another trait
    for column in table.columns[1:3]:
        column.justify = "right"
    guessed = []
    for trait, entry in adapter.traits.items():
        for pole, record in entry.poles.items():
            method = "" if record.method.name == NPTI else f" {record.method.name}"
            if not record.calibrated:
                guessed.append(f"{trait}{pole.sign}")
            for by, effect, cost in _measured(record):
                start = (f"{trait}{pole.sign}", f"{len(record.neurons):,}{method}", f"{record.gamma:g}")
                table.add_row(*start, escape(_plain(by)), effect, cost)
    loading.print_table(table)
    if guessed:
        click.echo(f"γ not calibrated on this model: {', '.join(guessed)}")
    for trait, entry in config["traits"].items():
        made = adapter.traits[trait].identification
        sure = made.split_half_reliability
        answers = [f"{made.transcripts:,} answers"] if made.transcripts else []
        answers += [] if sure is None else [f"split-half reliability {sure:.3f}"]
        click.echo(f"{entry['file']}: {entry['bytes']:,} bytes, {', '.join([made.source, *answers])}")
        click.echo(f"  SHA-256 {entry['sha256']}")
    click.echo(f"config.json, SHA-256 {config['config_sha256']}")
    click.echo(f"{config['bytes']:,} bytes in all")


def _measured(record: PoleRecord) -> list[tuple[str, str, str]]:
    """By whom the pole was scored, effect and cost: a row a judge, else what finding the dose measured."""
    from npti_export.adapter.card import NOT_MEASURED, figure

    rows = [
        (judge, figure(scores.get("effect"), "{:+.2f}"), figure(scores.get("fluency"), "{:.2f}"))
        for judge, scores in sorted(record.scores.items())
        if isinstance(scores, dict) and {"effect", "fluency"} & scores.keys()  # benchmarks alone have neither
    ]
    if rows:
        return rows
    at_dose = [point for point in record.dose_curve if point.gamma == record.gamma]
    if at_dose:
        return [("dose curve", f"{at_dose[0].effect:+.2f}", f"{at_dose[0].fluency:.2f}")]
    return [(NOT_MEASURED, "", "")]


def _plain(text: str) -> str:
    """Text from an adapter without what a terminal would obey."""
    return "".join(character if character.isprintable() else "�" for character in text)
