"""``npti-export import-npti``: published NPTI results as an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import click

from npti_export.cli import loading, options


@click.command(
    "import-npti",
    epilog="Example: npti-export import-npti NPTI/neuron_results --model meta-llama/Meta-Llama-3-8B-Instruct",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--model",
    "model_name",
    envvar="NPTI_MODEL",
    required=True,
    help="Hub id or folder of the model that the results are of; its weights are not needed. [env: NPTI_MODEL]",
)
@click.option("--num-layers", type=click.IntRange(1, 2**15 - 1), help="If the model's config cannot be had.")
@click.option("--neurons-per-layer", type=click.IntRange(1, 2**31 - 1), help="Likewise: gate units of each layer.")
@click.option("--output", type=click.Path(path_type=Path), help="The adapter's folder; adapters/<model> unless given.")
@options.quiet
@options.as_json
def command(
    folder: Path,
    model_name: str,
    num_layers: int | None,
    neurons_per_layer: int | None,
    output: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Turn published NPTI results into an adapter.

    FOLDER holds <Trait>_dict.json and <Trait>_reversed_dict.json of one trait or more, each {"layer": [[layer, index,
    delta, probability, target], ...]}. Every row is kept; the doses are the paper's, not measured on this model. Other
    traits of the same base model that the adapter holds already are kept too.
    """
    if (num_layers is None) != (neurons_per_layer is None):
        raise click.UsageError("Give both --num-layers and --neurons-per-layer, or neither.")

    from npti_export.adapter.find import default_adapter_folder
    from npti_export.adapter.model_config import base_model_from_config
    from npti_export.adapter.published import read_published
    from npti_export.identification.selection import adapter_in

    loading.hush_hub(quiet)
    base_model = base_model_from_config(model_name, num_layers, neurons_per_layer)
    traits = read_published(folder, base_model)
    where = output or default_adapter_folder(base_model.id)
    adapter = adapter_in(where, base_model, list(traits))
    replaced = [name for name in traits if name in adapter.traits]
    for trait in traits.values():
        adapter = adapter.with_trait(trait)
    adapter.save_pretrained(where)
    if replaced:
        loading.notice(f"Replaced what {where} held of {', '.join(replaced)}.", quiet)
    loading.notice("The doses are the paper's; they were not measured on this model.", quiet)
    rows = [
        {"personality": f"{name}{pole.sign}", "neurons": len(record.neurons), "gamma": record.gamma}
        for name, trait in traits.items()
        for pole, record in trait.poles.items()
    ]
    if as_json:
        click.echo(json.dumps({"folder": str(where), "base_model": base_model.id, "poles": rows}, indent=2))
        return
    for row in rows:
        click.echo(f"{row['personality']:20} {row['neurons']:7,} neurons   gamma {row['gamma']}")
    click.echo(f"Written to {where}")
