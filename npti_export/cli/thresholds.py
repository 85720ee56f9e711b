"""What chooses neurons and by which thresholds, as options that are one argument."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from npti_export.cli.one_argument import as_one

if TYPE_CHECKING:
    from npti_export.identification.selector import Selector


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
    type=click.Choice(["npti", "mean-shift", "residual", "hybrid", "fitted", "auto"]),
    default="npti",
    show_default=True,
    help="What chooses and moves neurons: the paper's rule; the difference of the poles' means on neurons; the same on "
    "the residual stream; both; vectors there that are fitted to the answers; auto measures all and takes the best for "
    "each pole.",
)
_min_difference = click.option(
    "--min-difference",
    type=click.FloatRange(0, 1),
    show_default="0.1",
    help="Smallest delta of a chosen neuron (npti, residual, fitted).",
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


def _selector(
    method: str,
    min_difference: float | None,
    min_effect_size: float | None,
    max_neurons: int | None,
    layers: tuple[int, int] | None,
    percentile: float,
) -> Selector:
    from npti_export.identification.selector import AUTO, Selector

    wanted = Selector(
        method,
        Selector.min_difference if min_difference is None else min_difference,
        percentile,
        min_effect_size,
        max_neurons=max_neurons,
        layers=layers,
    )
    ignored, used = ("--min-effect-size", "--min-difference")
    if wanted.by_effect_size:
        ignored, used = used, ignored
    given = {"--min-effect-size": min_effect_size, "--min-difference": min_difference}
    if method != AUTO and given[ignored] is not None:
        raise click.UsageError(f"The method {method} does not go by {ignored}; {used} is its threshold.")
    return wanted


selector = as_one("selector", _selector, _method, _min_difference, _min_effect_size, _max_neurons, _layers, _percentile)
"""Method and thresholds as options; the command gets them as one ``Selector``."""
