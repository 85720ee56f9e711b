"""Pictures of the methods side by side: the effect of each on every personality, and a radar of the traits for each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from npti_export.evaluation.report.pictures import COLOURS, GREY, plain, title
from npti_export.evaluation.results import Evaluation, PersonalityResult
from npti_export.traits import Pole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
METHOD_COLOURS = ("#1a202c", "#2b6cb0", "#a0aec0", "#d69e2e", "#c05621", "#b83280", "#2f855a", "#6b46c1", "#0987a0")
MARKERS = "oDXsv^<>P*"


def draw_effects(evaluation: Evaluation) -> Figure | None:
    """Each personality a row, each method a point with its 95 % interval: further right is more effect."""
    from matplotlib.figure import Figure

    methods = [name for name in evaluation.methods if name != evaluation.methods[0]]
    results = evaluation.personalities
    if not results or not methods:
        return None
    figure = Figure(figsize=(9, 1.2 + (0.25 + 0.13 * len(methods)) * len(results)), layout="constrained")
    axis = figure.subplots()
    for number, method in enumerate(methods):
        shift = (number - (len(methods) - 1) / 2) * 0.8 / len(methods)
        points = [(row, effect) for row, result in enumerate(results) if (effect := _effect(result, method))]
        if not points:
            continue
        means = [effect.mean for _, effect in points]
        whiskers = [[effect.mean - effect.low, effect.high - effect.mean] for _, effect in points]
        axis.errorbar(
            means,
            [row + shift for row, _ in points],
            xerr=np.maximum(np.transpose(whiskers), 0),
            fmt=MARKERS[number % len(MARKERS)],
            markersize=6 if method == "adapter" else 4.5,
            color=METHOD_COLOURS[(number + 1) % len(METHOD_COLOURS)],
            elinewidth=1.4,
            label=plain(method),
        )
    for row in range(0, len(results), 2):
        axis.axhspan(row - 0.5, row + 0.5, color="#f1f5f9", zorder=0, linewidth=0)
    axis.axvline(0, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axis.set_yticks(range(len(results)), [plain(result.personality) for result in results])
    axis.set_ylim(len(results) - 0.5, -0.5)
    axis.set_xlabel(f"effect: change of the {plain(evaluation.judge.name)} judge's score in the pole's direction")
    figure.legend(loc="outside upper center", ncols=min(4, len(methods)))
    return figure


def draw_radar(evaluation: Evaluation) -> Figure | None:
    """A radar a method: how high each trait is rated when steered to its high pole, to its low pole, and not at all.

    Corners without a score are left out of the polygon; below three traits there is no radar.
    """
    from matplotlib.figure import Figure

    traits, methods = evaluation.traits, evaluation.methods[1:]
    if len(traits) < 3 or not methods:
        return None
    rows = math.ceil(len(methods) / COLUMNS)
    columns = min(COLUMNS, len(methods))
    figure = Figure(figsize=(3.3 * columns, 3.3 * rows + 0.4), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False, subplot_kw={"projection": "polar"})
    angles = np.linspace(0, 2 * np.pi, len(traits), endpoint=False)
    lowest, highest = evaluation.judge.lowest, evaluation.judge.highest
    for axis, method in zip(axes.flat, methods, strict=False):
        _polygon(axis, angles, _scores(evaluation, evaluation.methods[0], Pole.HIGH), GREY, "unsteered", "--")
        for pole in Pole:
            _polygon(axis, angles, _scores(evaluation, method, pole), COLOURS[pole], f"steered {pole}", "-")
        axis.set_title(plain(method), pad=16)
        axis.set_ylim(lowest, highest)
        ticks = np.linspace(lowest, highest, 5)[1:]
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7, color=GREY)
        axis.set_xticks(angles, [title(trait)[:5] + "." for trait in traits], fontsize=9)
        axis.set_theta_offset(np.pi / 2)
        axis.set_theta_direction(-1)
        axis.grid(color="#e2e8f0")
        axis.spines["polar"].set_color("#cbd5e0")
    for axis in list(axes.flat)[len(methods) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _effect(result: PersonalityResult, method: str) -> Any:
    found = result.method(method)
    rating = found.rating() if found else None
    return rating.effect if rating else None


def _scores(evaluation: Evaluation, method: str, pole: Pole) -> list[float]:
    """The main judge's mean score of each trait at that pole; nan where there is none."""
    scores = []
    for trait in evaluation.traits:
        # The unsteered answers are the same for both poles; either will do.
        results = [evaluation.of(trait, pole), evaluation.of(trait, pole.opposite)]
        of_pole = results if method == evaluation.methods[0] else results[:1]
        found = [result.method(method) for result in of_pole if result]
        ratings = [rating for one in found if one and (rating := one.rating()) and rating.mean]
        scores.append(ratings[0].mean.mean if ratings and ratings[0].mean else math.nan)
    return scores


def _polygon(axis: Any, angles: Any, scores: list[float], colour: str, label: str, line: str) -> None:
    known = [at for at, score in enumerate(scores) if not math.isnan(score)]
    if not known:
        return
    ring = [*known, known[0]]
    around, values = angles[ring], np.array(scores)[ring]
    axis.plot(around, values, color=colour, linestyle=line, linewidth=1.8, label=label, marker="o", markersize=3)
    if line == "-":
        axis.fill(around, values, color=colour, alpha=0.13, linewidth=0)
