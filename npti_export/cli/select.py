"""``npti-export select``: the third stage alone, from statistics to an adapter; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from npti_export.cli import loading, material, options
from npti_export.cli.thresholds import selector

if TYPE_CHECKING:
    from npti_export.identification.selector import Selector


@click.command("select", epilog="Example: npti-export select --trait openness --min-difference 0.2")
@material.traits
@options.model
@material.output
@selector
@options.as_json
def command(
    wanted: material.Wanted, model_name: str | None, output: Path | None, selector: Selector, as_json: bool
) -> None:
    """Choose neurons by another method or other thresholds from statistics that are there, and write the adapter.

    The dose is the paper's, or 1 where it has none, and is marked as not calibrated; `identify` with the same options
    takes up answers and statistics and finds it. --method auto is for `identify` alone, which can measure.
    """
    from npti_export.adapter.find import default_adapter_folder, id_of_model_name
    from npti_export.demo import DEMO_MODEL
    from npti_export.identification.selection import select_into

    if output is None and model_name is None:
        loading.notice("Using what the bundled demo model npti-demo said; name another with --model or --output.")
    folder = output or default_adapter_folder(id_of_model_name(model_name or str(DEMO_MODEL)))
    adapter = select_into(folder, wanted.names, selector)
    rows = [
        {
            "personality": f"{name}{pole.sign}",
            "method": record.method.name,
            "neurons": len(record.neurons),
            "reliability": adapter.traits[name].identification.split_half_reliability,
            "selection_overlap": (adapter.traits[name].identification.selection_overlap or {}).get(str(pole)),
            "delta_margin": (adapter.traits[name].identification.delta_margin or {}).get(str(pole)),
        }
        for name in wanted.names
        for pole, record in adapter.traits[name].poles.items()
    ]
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "poles": rows}, indent=2))
        return
    for row in rows:
        click.echo(
            f"{row['personality']:20} {row['neurons']:6} neurons   reliability {row['reliability']:.3f}   "
            f"overlap of the halves' selections {row['selection_overlap']:.2f}"
        )
    click.echo(f"Written to {folder}, not calibrated: identify with the same options finds the dose.")
