"""``npti-export identify``: from a trait to an adapter."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from npti_export.cli import loading, options


@click.command("identify", epilog="Example: npti-export identify --trait openness --model Qwen/Qwen2.5-7B-Instruct")
@options.trait
@click.option("--all-traits", is_flag=True, help="All five shipped traits.")
@options.model
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the adapter; adapters/<model> unless given. Other traits there are kept.",
)
@options.questions
@options.personas
@click.option(
    "--max-questions", type=click.IntRange(5), default=100, show_default=True, help="Questions asked at each pole."
)
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
    """Find the neurons of a trait in a chat model and write the adapter.

    The model answers questions in character at both poles; the neurons that fire more at one pole are kept; the dose of
    each pole is found on questions held back. Transcripts stay beside the adapter, and a run that was stopped goes on.
    """
    from npti_export.traits import TRAITS, trait_named
    from npti_export.traits.material import read_personas, read_questions

    names = list(TRAITS) if all_traits else list(dict.fromkeys(name.lower() for name in traits))
    if not names:
        raise click.UsageError("Give --trait with one of " + ", ".join(TRAITS) + ", or --all-traits.")
    for name in names:
        trait_named(name)
        if questions_file:
            read_questions(questions_file, name)
        if personas_file:
            read_personas(personas_file, name)
    model, tokenizer = loading.load_model(model_name, device, dtype, quiet)

    from npti_export.pipeline import identify

    found = identify(
        model,
        tokenizer,
        names,
        output,
        questions=partial(read_questions, questions_file) if questions_file else None,
        personas=partial(read_personas, personas_file) if personas_file else None,
        max_questions=max_questions,
        batch_size=batch_size,
        seed=seed,
        stage=partial(loading.stage, quiet=quiet),
        warn=lambda message: loading.notice(f"Note: {message}", quiet),
    )
    rows = [
        {
            "personality": f"{name}{pole.sign}",
            "neurons": len(record.neurons),
            "gamma": record.gamma,
            "effect": next((p.effect for p in record.dose_curve if p.gamma == record.gamma), None),
            "fluency": next((p.fluency for p in record.dose_curve if p.gamma == record.gamma), None),
            "reliability": found.adapter.traits[name].identification.split_half_reliability,
            "judge_auc": round(found.auc[name], 4),
        }
        for name in names
        for pole, record in found.adapter.traits[name].poles.items()
    ]
    if as_json:
        click.echo(json.dumps({"folder": str(found.folder), "poles": rows}, indent=2))
        return
    for row in rows:
        click.echo(
            f"{row['personality']:20} {row['neurons']:6} neurons   gamma {row['gamma']:<4}   "
            f"effect {row['effect']:+.2f} at {row['fluency']:.2f}x perplexity   "
            f"reliability {row['reliability']:.3f}   judge AUC {row['judge_auc']:.3f}"
        )
    click.echo(f"Written to {found.folder}")
