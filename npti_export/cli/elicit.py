"""``npti-export elicit``: the first stage alone, from personas and questions to transcripts."""

from __future__ import annotations

import json
from pathlib import Path

import click

from npti_export.cli import loading, material, options
from npti_export.cli.machine import Machine, machine


@click.command("elicit", epilog="Example: npti-export elicit --trait openness --max-questions 60")
@material.traits
@machine
@material.output
@material.asked
@options.as_json
def command(
    wanted: material.Wanted, machine: Machine, output: Path | None, asked: material.Asked, as_json: bool
) -> None:
    """Have a chat model answer all questions in character, and keep the transcripts.

    They are written to transcripts/<trait>.jsonl in the adapter's folder, one JSON object a line; `measure` and
    `identify` go on from there. Answers that are there are not asked for again. --transcripts takes answers that exist.
    """
    readers = asked.readers(wanted)
    endpoint = asked.endpoint(machine.batch_size)
    model, tokenizer = machine.load()

    from npti_export.adapter.find import default_adapter_folder
    from npti_export.identification.answer_faults import count_faults
    from npti_export.identification.files import TraitFiles
    from npti_export.identification.given import read_given
    from npti_export.identification.processes import first_does
    from npti_export.identification.selection import open_adapter
    from npti_export.identification.stages import run_elicit, run_given
    from npti_export.pipeline import plan_traits, work_with

    work = work_with(model, tokenizer, machine.batch_size, endpoint)
    folder = output if output is not None else default_adapter_folder(work.base_model.id)
    given, planned = {}, {}
    if asked.transcripts_file:
        given = {name: read_given(asked.transcripts_file, name, model, tokenizer) for name in wanted.names}
    else:
        planned = plan_traits(wanted.names, **readers, max_questions=asked.max_questions, seed=asked.seed)
    first_does(lambda: open_adapter(folder, work.base_model, wanted.names))  # refuses another model's before any work
    results = {}
    for name in wanted.names:
        files = TraitFiles(folder, name)
        if name in given:
            run_given(work, files, given[name])
            faults = count_faults(given[name])
        else:
            steps = len(planned[name].planned)
            with loading.stage(f"{name}: answers in character", steps, machine.says_nothing) as progress:
                faults = count_faults(run_elicit(work, files, planned[name], progress))
        results[name] = {"transcripts": str(files.transcripts)} | {str(pole): vars(faults[pole]) for pole in faults}
        if not as_json:
            click.echo(f"{name}: " + "; ".join(f"{pole} pole: {counts}" for pole, counts in faults.items()))
            click.echo(f"Written to {files.transcripts}")
    if as_json:
        click.echo(json.dumps(results, indent=2))
