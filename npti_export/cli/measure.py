"""``npti-export measure``: the second stage alone, from transcripts to statistics of every neuron."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from npti_export.cli import loading, material, options
from npti_export.cli.machine import Machine, machine


@click.command("measure", epilog="Example: npti-export measure --trait openness --model Qwen/Qwen2.5-7B-Instruct")
@material.traits
@machine
@material.output
@options.as_json
def command(wanted: material.Wanted, machine: Machine, output: Path | None, as_json: bool) -> None:
    """Count, over transcripts that are there, what every neuron does at either pole.

    Reads transcripts/<trait>.jsonl in the adapter's folder and writes statistics/<trait>_high.safetensors, ..._low, and
    <trait>.json, which says how sure they are after each block of questions; `select` goes on from there.
    """
    model, tokenizer = machine.load()

    from npti_export.adapter.find import default_adapter_folder
    from npti_export.identification.elicit import read_transcripts
    from npti_export.identification.files import TraitFiles
    from npti_export.identification.memory import memory_line
    from npti_export.identification.processes import first_does
    from npti_export.identification.selection import open_adapter
    from npti_export.identification.stages import run_measure
    from npti_export.pipeline import work_with

    work = work_with(model, tokenizer, machine.batch_size)
    folder = output if output is not None else default_adapter_folder(work.base_model.id)
    first_does(lambda: open_adapter(folder, work.base_model, wanted.names))  # refuses another model's before any work
    loading.notice(memory_line(work.sites), machine.says_nothing)
    curves = {}
    for name in wanted.names:
        files = TraitFiles(folder, name)
        steps = len(read_transcripts(files.transcripts))
        with loading.stage(f"{name}: measure neurons", steps, machine.says_nothing) as progress:
            measured = run_measure(work, files, progress)
        curves[name] = [asdict(point) for point in measured.curve]
        if not as_json:
            for point in measured.curve:
                overlap = " / ".join(f"{share:.2f}" for share in point.overlap.values())
                click.echo(
                    f"{name}: {point.questions:4} questions   reliability {point.split_half:.4f}   "
                    f"overlap of the halves' selections {overlap}"
                )
            click.echo(f"Written to {files.measurement.parent}")
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "curves": curves}, indent=2))
