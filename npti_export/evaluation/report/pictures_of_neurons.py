"""Picture of the neurons: how many of each layer every personality moves and caps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from npti_export.evaluation.report.pictures import HIGH_COLOUR, LOW_COLOUR, plain
from npti_export.evaluation.results import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_neurons(evaluation: Evaluation) -> Figure | None:
    """A row a trait: the high pole's neurons upwards, the low pole's downwards; capped ones pale, vectors as triangles.

    Drawn from the section ``neurons``.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    section = evaluation.sections.get("neurons")
    if not section or not section["personalities"]:
        return None
    of_poles = section["personalities"]
    traits = list(dict.fromkeys(name[:-1] for name in of_poles))
    layers = np.arange(section["layers"])
    figure = Figure(figsize=(9, 0.9 + 1.9 * len(traits)), layout="constrained")
    axes = figure.subplots(len(traits), 1, squeeze=False, sharex=True)[:, 0]
    for axis, trait in zip(axes, traits, strict=True):
        reach = 1
        for name, up, colour, side in ((f"{trait}+", 1, HIGH_COLOUR, "left"), (f"{trait}-", -1, LOW_COLOUR, "right")):
            pole = of_poles.get(name)
            if pole is None:
                continue
            moved, capped = np.array(pole["moved"]), np.array(pole["capped"])
            axis.bar(layers, up * moved, width=0.85, color=colour)
            axis.bar(layers, up * capped, bottom=up * moved, width=0.85, color=colour, alpha=0.3)
            reach = max(reach, int((moved + capped).max()))
            said = f"{name}  {pole['method']}: {moved.sum():,} moved, {capped.sum():,} capped"
            axis.set_title(plain(said), loc=side, fontsize=9, color=colour)
        _scale(axis, reach)
        for name, up, colour in ((f"{trait}+", 1, HIGH_COLOUR), (f"{trait}-", -1, LOW_COLOUR)):
            at = of_poles.get(name, {}).get("residual", [])
            axis.plot(at, [up * reach * 1.12] * len(at), "v" if up > 0 else "^", color=colour, markersize=8)
    axes[-1].set_xlabel("layer")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    handles: list[Any] = [
        Patch(color="#4a5568", label="moved"),
        Patch(color="#4a5568", alpha=0.3, label="capped"),
        Line2D([], [], color="#4a5568", marker="v", linestyle="", label="vector added behind the layer"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _scale(axis: Any, reach: int) -> None:
    """The same scale up and down, counts without a sign, room for the triangles."""
    axis.set_ylim(-1.3 * reach, 1.3 * reach)
    axis.yaxis.get_major_locator().set_params(integer=True, nbins=5)
    axis.yaxis.set_major_formatter(lambda value, _at: f"{abs(value):,.0f}")
    axis.set_ylabel("neurons")
    axis.axhline(0, color="#1a202c", linewidth=0.7)
