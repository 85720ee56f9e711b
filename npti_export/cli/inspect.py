"""``npti-export inspect``: what an adapter holds."""

from __future__ import annotations

import json

import click

from npti_export.cli import loading, options


@click.command("inspect", epilog="Example: npti-export inspect adapters/npti-demo")
@click.argument("adapter", required=False)
@options.model
@options.as_json
def command(adapter: str | None, model_name: str | None, as_json: bool) -> None:
    """Show what an adapter holds: base model, traits, neurons, doses, what was measured.

    ADAPTER is a folder or a Hub repository; without it the one made for the model is looked for.
    """
    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.adapter.config import base_model_to_json, pole_to_json
    from npti_export.adapter.find import DEMO_ID, find_adapter, id_of_model_name

    name = adapter or str(find_adapter(id_of_model_name(model_name) if model_name else DEMO_ID))
    loaded = PersonalityAdapter.from_pretrained(name)
    if as_json:
        traits = {
            trait: {str(pole): pole_to_json(record) for pole, record in entry.poles.items()}
            for trait, entry in loaded.traits.items()
        }
        click.echo(json.dumps({"base_model": base_model_to_json(loaded.base_model), "traits": traits}, indent=2))
        return
    from rich.table import Table

    base = loaded.base_model
    click.echo(
        f"{name}: personalities of {base.id} ({base.model_type}, {base.num_layers} layers, {base.num_neurons} neurons)"
    )
    table = Table("personality", "neurons", "γ", "calibrated", "effect", "perplexity ratio", "reliability")
    for trait, entry in loaded.traits.items():
        for pole, record in entry.poles.items():
            point = next((p for p in record.dose_curve if p.gamma == record.gamma), None)
            reliability = entry.identification.split_half_reliability
            table.add_row(
                f"{trait}{pole.sign}",
                str(len(record.neurons)),
                f"{record.gamma:g}",
                "yes" if record.calibrated else "no",
                f"{point.effect:+.2f}" if point else "not measured",
                f"{point.fluency:.2f}" if point else "not measured",
                f"{reliability:.3f}" if reliability is not None else "not measured",
            )
    loading.print_table(table)
