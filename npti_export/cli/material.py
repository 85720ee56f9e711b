"""Options and checks that the commands of identification share: which traits, which questions and personas."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial, wraps
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


def _layer_range(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """First and last layer of a range such as 4-9, or of one layer such as 7."""
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?", value):
        raise click.BadParameter(f"{value!r} is no range of layers such as 4-9.")
    first, _, last = value.partition("-")
    return int(first), int(last or first)


_method = click.option(
    "--method",
    type=click.Choice(["npti", "mean-shift", "residual", "hybrid", "auto"]),
    default="npti",
    show_default=True,
    help="What chooses and moves neurons: the paper's rule; the difference of the poles' means on neurons; the same on "
    "the residual stream; both; auto measures all and takes the best for each pole.",
)
_min_difference = click.option(
    "--min-difference",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Smallest delta of a chosen neuron (npti, residual).",
)
_min_effect_size = click.option(
    "--min-effect-size",
    type=click.FloatRange(0, min_open=True),
    help="Smallest effect size (Cohen's d) of a chosen neuron (mean-shift, hybrid); without it a quarter of all "
    "neurons is taken, those of the largest.",
)
_max_neurons = click.option("--max-neurons", type=click.IntRange(1), help="Neurons of a pole at most, the strongest.")
_layers = click.option(
    "--layers",
    metavar="A-B",
    callback=_layer_range,
    help="Layers that neurons and residuals may lie in, both ends included, from 0.",
)
_percentile = click.option(
    "--percentile",
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    default=95.0,
    show_default=True,
    help="Which percentile of the pole's own activations is the target.",
)


def selector(command: Callable[..., None]) -> Callable[..., None]:
    """Method and thresholds as options; the command gets them as one ``selector``."""

    @wraps(command)
    def with_selector(
        method: str,
        min_difference: float,
        min_effect_size: float | None,
        max_neurons: int | None,
        layers: tuple[int, int] | None,
        percentile: float,
        **others: Any,
    ) -> None:
        from npti_export.identification.selector import Selector

        wanted = Selector(
            method,
            min_difference,
            percentile,
            min_effect_size,
            max_neurons=max_neurons,
            layers=layers,
        )
        command(selector=wanted, **others)

    for option in (_percentile, _layers, _max_neurons, _min_effect_size, _min_difference, _method):
        with_selector = option(with_selector)
    return with_selector


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
