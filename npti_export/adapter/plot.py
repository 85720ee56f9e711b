"""A picture of an adapter: for each trait, how many neurons each layer has and how large their deltas are, by pole.

matplotlib is an extra, imported only when a picture is asked for.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.traits import Pole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {Pole.HIGH: "#2b6cb0", Pole.LOW: "#c05621"}
"""Blue and orange are told apart by the colour-blind too."""
DELTA_BINS = 50
"""Of the histogram of delta, from 0 (or the smallest one, which mean-shift may have below) to the largest one."""


def plot_adapter(adapter: PersonalityAdapter) -> Figure:
    """Draws a row a trait: neurons by layer, the high pole upwards and the low downwards, and beside it their deltas.

    Args:
        adapter: With one trait at least.

    Returns:
        The figure, to save or to show.

    Raises:
        NptiError: If matplotlib is not installed, or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NptiError("A picture needs matplotlib; install it with: pip install 'npti-export[plot]'.") from None
    if not adapter.traits:
        raise NptiError("The adapter has no traits, so there is nothing to draw.")
    records = [trait.poles for trait in adapter.traits.values()]
    deltas = np.concatenate([[0.0], *(pole.neurons.delta for poles in records for pole in poles.values())])
    edges = np.linspace(deltas.min(), deltas.max() or 1, DELTA_BINS + 1)
    figure = Figure(figsize=(11, 0.9 + 2.4 * len(records)), dpi=120, layout="constrained")
    # A name may hold what matplotlib would take for mathematics.
    figure.suptitle(f"Personalities of {adapter.base_model.id}".replace("$", r"\$"))
    axes = figure.subplots(len(records), 2, squeeze=False, sharex="col", width_ratios=(3, 2))
    layers = np.arange(adapter.base_model.num_layers)
    for (by_layer, by_delta), (name, trait) in zip(axes, adapter.traits.items(), strict=True):
        for pole, record in trait.poles.items():
            up, side = (1, "left") if pole is Pole.HIGH else (-1, "right")
            counts = np.bincount(record.neurons.layer, minlength=len(layers))
            by_layer.bar(layers, up * counts, width=0.9, color=COLOURS[pole])
            title = f"{name}{pole.sign}   {len(record.neurons):,} neurons"
            by_layer.set_title(title, loc=side, fontsize="medium", color=COLOURS[pole])
            heights, _ = np.histogram(record.neurons.delta, edges)
            by_delta.stairs(heights, edges, color=COLOURS[pole], linewidth=1.5)
        _mirror(by_layer)
        _logarithmic(by_delta)
    axes[-1][0].set_xlabel("layer")
    axes[-1][0].xaxis.get_major_locator().set_params(integer=True)
    axes[-1][1].set_xlabel("delta")
    return figure


def write_picture(adapter: PersonalityAdapter, path: Path) -> None:
    """Writes the picture of an adapter as PNG, beside its place first and renamed then.

    Raises:
        NptiError: If matplotlib is not installed, there is nothing to draw, or the file cannot be written.
    """
    data = io.BytesIO()
    plot_adapter(adapter).savefig(data, format="png")
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(data.getvalue())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise NptiError(f"The picture cannot be written to {path} ({error.strerror}); choose another file.") from None


def _mirror(axis: Axes) -> None:
    """The same scale up and down, and counts without a sign."""
    reach = max(1.0, *map(abs, axis.get_ylim()))
    axis.set_ylim(-reach, reach)
    axis.yaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axis.yaxis.set_major_formatter(lambda value, _at: f"{abs(value):,.0f}")
    axis.set_ylabel("neurons")
    axis.axhline(0, color="black", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _logarithmic(axis: Axes) -> None:
    """Counts on a logarithmic scale: the few neurons with a large delta, which move most, would not be seen else."""
    axis.set_yscale("log")
    axis.set_ylim(0.7, max(10.0, axis.get_ylim()[1]))
    axis.yaxis.set_major_formatter(lambda value, _at: f"{value:,.0f}")
    axis.set_ylabel("neurons")
    axis.spines[["top", "right"]].set_visible(False)
