"""The pictures of an evaluation: one look, one palette, as SVG for the report and as PNG beside it.

matplotlib is an extra, imported only when a picture is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from npti_export.errors import NptiError
from npti_export.evaluation.results import Evaluation
from npti_export.traits import Pole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HIGH_COLOUR, LOW_COLOUR = "#2b6cb0", "#c05621"
"""Blue and orange are told apart by the colour-blind too; the same as in the picture of an adapter."""
COLOURS = {Pole.HIGH: HIGH_COLOUR, Pole.LOW: LOW_COLOUR}
GREY = "#718096"
DPI = 160
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be selected, and read by a screen reader
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.edgecolor": "#4a5568",
    "axes.grid": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def drawn(evaluation: Evaluation) -> dict[str, Figure]:
    """All pictures that an evaluation has the figures for, by the name of their file, in the order of the report.

    Raises:
        NptiError: If matplotlib is not installed.
    """
    with style():
        from npti_export.evaluation.report.pictures_of_bleed import draw_bleed
        from npti_export.evaluation.report.pictures_of_doses import draw_doses
        from npti_export.evaluation.report.pictures_of_methods import draw_effects, draw_radar
        from npti_export.evaluation.report.pictures_of_neurons import draw_neurons

        drawers: Mapping[str, Callable[[Evaluation], Figure | None]] = {
            "effects": draw_effects,
            "radar": draw_radar,
            "doses": draw_doses,
            "bleed": draw_bleed,
            "neurons": draw_neurons,
        }
        figures = {name: figure for name, draw in drawers.items() if (figure := draw(evaluation)) is not None}
        for figure in figures.values():
            # The layout is found once; PNG and SVG would each look for it again, which is most of their time.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
    return figures


def style() -> AbstractContextManager[None]:
    """The look of all pictures, within the block.

    Raises:
        NptiError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise NptiError("A report needs matplotlib; install it with: pip install 'npti-export[plot]'.") from None
    context: Any = matplotlib.rc_context(_STYLE)
    return context  # type: ignore[no-any-return]


def png(figure: Figure) -> bytes:
    """The picture as PNG; the same figures give the same bytes."""
    data = io.BytesIO()
    with style():
        figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return data.getvalue()


def svg(figure: Figure, name: str) -> str:
    """The picture as an ``svg`` element that can stand in an HTML page beside others, as wide as its place.

    Args:
        figure: The picture.
        name: Its own, so that no two pictures of a page share an id.
    """
    import matplotlib

    text = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    element = text.getvalue()
    element = element[element.index("<svg") :]
    # Groups are numbered in every picture alike, and nothing refers to them.
    element = re.sub(r'<g id="[\w.]+"', "<g", element)
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2)


def plain(text: str) -> str:
    """A text as matplotlib shows it unchanged: a dollar sign would begin mathematics."""
    return text.replace("$", r"\$")


def title(text: str) -> str:
    """A trait's name as a heading.

    >>> title("openness")
    'Openness'
    """
    return plain(text.replace("_", " ").capitalize())


def zero_line(axis: Axes, at: float = 0.0) -> None:
    """A thin line across the picture where nothing has changed."""
    axis.axhline(at, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
