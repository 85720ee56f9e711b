"""Picture of the dose curves: what each strength does, and what it costs, with bands of 95 %."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from npti_export.evaluation.dose.recalibration import MAX_RATIO
from npti_export.evaluation.report.pictures import COLOURS, plain, title, zero_line
from npti_export.evaluation.results import DoseCurve, Evaluation, PersonalityResult
from npti_export.traits import Pole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES: tuple[Any, ...] = ("-", "--", ":", "-.")
"""One a method."""
TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1_000, 10_000)
"""Of a logarithmic scale."""


def draw_doses(evaluation: Evaluation) -> Figure | None:
    """A row a trait: effect on the left, perplexity ratio on the right, over the strength; both poles together.

    The band is the 95 % interval; a triangle marks where more has less effect, a grey line the recommended strength.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    results = [result for result in evaluation.personalities if result.curves]
    traits = list(dict.fromkeys(result.trait for result in results))
    methods = list(dict.fromkeys(curve.method for result in results for curve in result.curves))
    if not traits:
        return None
    figure = Figure(figsize=(9, 0.9 + 2.2 * len(traits)), layout="constrained")
    axes = figure.subplots(len(traits), 2, squeeze=False, sharex=True, sharey="col")
    for (effect, cost), trait in zip(axes, traits, strict=True):
        effect.set_title(title(trait), loc="left")
        effect.set_ylabel("effect")
        cost.set_ylabel("perplexity ratio")
        zero_line(effect)
        zero_line(cost, 1.0)
        cost.axhline(MAX_RATIO, color="#c53030", linewidth=0.9, linestyle=":")
        for axis in (effect, cost):
            axis.axvline(1.0, color="#cbd5e0", linewidth=3, zorder=0)
        for result, curve in _curves(results, trait):
            _draw(effect, cost, curve, COLOURS[result.pole], LINES[methods.index(curve.method) % len(LINES)])
    _logarithmic(axes[0][1], results)
    for axis in axes[-1]:
        axis.set_xlabel("strength (1 is the recommended dose)")
    handles = [Line2D([], [], color=COLOURS[pole], linewidth=2.5, label=f"{pole} pole") for pole in Pole]
    handles += [
        Line2D([], [], color="#1a202c", linestyle=LINES[at % len(LINES)], label=plain(method))
        for at, method in enumerate(methods)
    ]
    handles.append(Line2D([], [], color="#c53030", linestyle=":", label=f"calibrate's budget, {MAX_RATIO:g}"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(5, len(handles)))
    return figure


def _curves(results: list[PersonalityResult], trait: str) -> list[tuple[PersonalityResult, DoseCurve]]:
    return [(result, curve) for result in results if result.trait == trait for curve in result.curves]


def _draw(effect: Any, cost: Any, curve: DoseCurve, colour: str, line: str) -> None:
    strengths = [point.strength for point in curve.points]
    for axis, estimates in (
        (effect, [point.effect for point in curve.points]),
        (cost, [point.ratio for point in curve.points]),
    ):
        axis.fill_between(
            strengths, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.15, linewidth=0
        )
        axis.plot(
            strengths,
            [e.mean for e in estimates],
            color=colour,
            linestyle=line,
            marker="o",
            markersize=3.5,
            linewidth=2,
        )
    if curve.tips_over is not None:
        at = next((p.effect.mean for p in curve.points if p.strength == curve.tips_over), None)
        if at is not None:
            effect.plot([curve.tips_over], [at], marker="v", markersize=9, color=colour, markeredgecolor="white")


def _logarithmic(axis: Any, results: list[PersonalityResult]) -> None:
    """Where a dose breaks the text the ratio runs away; a ratio is at home on a logarithmic scale."""
    ratios = [point.ratio for result in results for curve in result.curves for point in curve.points]
    low, high = min(r.low for r in ratios), max(r.high for r in ratios)
    if low <= 0 or high < 3:
        return
    axis.set_yscale("log")
    ticks = [tick for tick in TICKS if low / 2 < tick < high * 2]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
