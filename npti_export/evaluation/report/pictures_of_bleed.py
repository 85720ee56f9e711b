"""Picture of bleed: steering to one pole, how far does every trait move? One heat map a method."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from npti_export.evaluation.report.pictures import plain, title
from npti_export.evaluation.results import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 2


def draw_bleed(evaluation: Evaluation) -> Figure | None:
    """Rows are what was steered to, columns the traits that were scored; blue rose, red fell, white did not move.

    The personality's own trait is framed. A change whose 95 % interval holds 0 is written in grey.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    results = evaluation.personalities
    methods = [name for name in evaluation.methods if any((found := r.method(name)) and found.bleed for r in results)]
    if not methods:
        return None
    traits = list(dict.fromkeys(t for r in results for m in r.methods for t in m.bleed))
    bleeds = {name: [(found.bleed if (found := r.method(name)) else {}) for r in results] for name in methods}
    columns = min(COLUMNS, len(methods))
    rows = math.ceil(len(methods) / columns)
    reach = max(0.05, *(abs(e.mean) for of_rows in bleeds.values() for row in of_rows for e in row.values()))
    wide = 2.0 + 0.72 * len(traits)
    figure = Figure(figsize=(max(5.0, wide * columns), 0.7 + (1.3 + 0.4 * len(results)) * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    image = None
    for axis, method in zip(axes.flat, methods, strict=False):
        means = np.full((len(results), len(traits)), math.nan)
        for row, bleed in enumerate(bleeds[method]):
            for trait, change in bleed.items():
                column = traits.index(trait)
                means[row, column] = change.mean
                strong = abs(change.mean) > 0.6 * reach
                sure = change.low > 0 or change.high < 0
                colour = "white" if strong else "#1a202c" if sure else "#718096"
                axis.text(
                    column,
                    row,
                    f"{round(change.mean, 2) + 0.0:+.2f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=colour,
                    fontweight="bold" if sure else "normal",
                )
        edges = (np.arange(len(traits) + 1) - 0.5, np.arange(len(results) + 1) - 0.5)
        cells = np.ma.masked_invalid(means)
        image = axis.pcolormesh(*edges, cells, cmap="RdBu", vmin=-reach, vmax=reach, edgecolors="white", linewidth=0.5)
        axis.invert_yaxis()
        for row, result in enumerate(results):
            if result.trait in traits:
                corner = (traits.index(result.trait) - 0.5, row - 0.5)
                axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#1a202c", linewidth=1.8, zorder=5))
        axis.set_title(plain(method), pad=8)
        axis.set_yticks(range(len(results)), [plain(result.personality) for result in results])
        axis.set_xticks(range(len(traits)), [title(trait)[:5] + "." for trait in traits])
        axis.xaxis.tick_bottom()
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    for axis in list(axes.flat)[len(methods) :]:
        axis.set_visible(False)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.6, aspect=40, pad=0.02)
        bar.set_label("change of the score towards the trait's high end")
        bar.outline.set_visible(False)
    return figure
