"""``npti-export elicit``: the first stage alone, from personas and questions to transcripts."""

from __future__ import annotations

import json
from pathlib import Path

import click

from npti_export.cli import loading, material, options


@click.command("elicit", epilog="Example: npti-export elicit --trait openness --max-questions 60")
@options.trait
@material.all_traits
@options.model
@material.output
@options.questions
@options.personas
@material.max_questions
@options.device
@options.dtype
@options.batch_size
@options.seed
@options.quiet
@options.as_json
def command(
    traits: tuple[str, ...],
    all_traits: bool,
    model_name: str | None,
    output: Path | None,
    questions_file: Path | None,
    personas_file: Path | None,
    max_questions: int,
    device: str,
    dtype: str,
    batch_size: int,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Have a chat model answer all questions in character, and keep the transcripts.

    They are written to transcripts/<trait>.jsonl in the adapter's folder, one JSON object a line; `measure` and
    `identify` go on from there. Answers that are there are not asked for again.
    """
    names = material.wanted_traits(traits, all_traits)
    readers = material.readers(names, questions_file, personas_file)
    model, tokenizer = loading.load_model(model_name, device, dtype, quiet)

    from npti_export.adapter.find import default_adapter_folder
    from npti_export.identification.answer_faults import count_faults
    from npti_export.identification.files import TraitFiles
    from npti_export.identification.selection import open_adapter
    from npti_export.identification.stages import run_elicit
    from npti_export.pipeline import plan_traits, work_with

    planned = plan_traits(names, **readers, max_questions=max_questions, seed=seed)
    work = work_with(model, tokenizer, batch_size)
    folder = output if output is not None else default_adapter_folder(work.base_model.id)
    open_adapter(folder, work.base_model, names)  # refuses another model's before any work
    results = {}
    for name, given in planned.items():
        files = TraitFiles(folder, name)
        with loading.stage(f"{name}: answers in character", len(given.planned), quiet) as progress:
            faults = count_faults(run_elicit(work, files, given, progress))
        results[name] = {"transcripts": str(files.transcripts)} | {str(pole): vars(faults[pole]) for pole in faults}
        if not as_json:
            click.echo(f"{name}: " + "; ".join(f"{pole} pole: {counts}" for pole, counts in faults.items()))
            click.echo(f"Written to {files.transcripts}")
    if as_json:
        click.echo(json.dumps(results, indent=2))
