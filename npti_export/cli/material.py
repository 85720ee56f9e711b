"""Options and checks that the commands of identification share: which traits, which questions and personas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

all_traits = click.option("--all-traits", is_flag=True, help="All five shipped traits.")
output = click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the adapter; adapters/<model> unless given. Other traits there are kept.",
)
max_questions = click.option(
    "--max-questions",
    type=click.IntRange(5),
    default=100,
    show_default=True,
    help="Questions asked at each pole at most.",
)
min_difference = click.option(
    "--min-difference",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Smallest delta of a chosen neuron.",
)
percentile = click.option(
    "--percentile",
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    default=95.0,
    show_default=True,
    help="Which percentile of the pole's own activations is the target.",
)


def wanted_traits(traits: Sequence[str], every: bool) -> list[str]:
    """The traits that a command is to work on.

    Raises:
        click.UsageError: If none is named.
        ValueError: If one is not a shipped one.
    """
    from npti_export.traits import TRAITS, trait_named

    names = list(TRAITS) if every else list(dict.fromkeys(name.lower() for name in traits))
    if not names:
        raise click.UsageError("Give --trait with one of " + ", ".join(TRAITS) + ", or --all-traits.")
    for name in names:
        trait_named(name)
    return names


def readers(
    names: Sequence[str], questions_file: Path | None, personas_file: Path | None
) -> dict[str, Callable[[str], Any] | None]:
    """What gives the questions and personas of a trait, by those names; files are read once to see that they can be.

    Raises:
        NptiError: If a file cannot be read, or has nothing for one of the traits.
    """
    from npti_export.traits.material import read_personas, read_questions

    questions = partial(read_questions, questions_file) if questions_file else None
    personas = partial(read_personas, personas_file) if personas_file else None
    for name in names:
        for read in (questions, personas):
            if read:
                read(name)
    return {"questions": questions, "personas": personas}
