"""Options that several commands share, spelled once."""

from __future__ import annotations

from pathlib import Path

import click

model = click.option(
    "--model",
    "model_name",
    envvar="NPTI_MODEL",
    help="Hub id or folder of a chat model; without it the bundled npti-demo is used. [env: NPTI_MODEL]",
)
adapter = click.option(
    "--adapter", help="Folder or Hub repository of an adapter; without it the one made for the model is looked for."
)
trait = click.option("--trait", "traits", multiple=True, help="A trait such as openness; may be given several times.")
device = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:1 …; auto takes a GPU, all spreads the model over all of them.",
)
dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="auto: float32 on a CPU, the checkpoint's own on a GPU.",
)
batch_size = click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Rows worked on at once."
)
seed = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Decides everything that is drawn at random.",
)
quiet = click.option("--quiet", "-q", is_flag=True, help="No progress and no notices.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
questions = click.option(
    "--questions",
    "questions_file",
    type=click.Path(path_type=Path),
    help="JSON lines with the key question, in place of the shipped ones (PersonalityBench's files work).",
)
personas = click.option(
    "--personas",
    "personas_file",
    type=click.Path(path_type=Path),
    help="JSON lines of personas, in place of the shipped ones (PersonalityBench's description.jsonl works).",
)
