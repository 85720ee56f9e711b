"""The report of an evaluation as one HTML page that needs nothing else, with its pictures as PNG beside it.

The page is made from the evaluation's records alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from npti_export.errors import NptiError
from npti_export.evaluation.dose.sums import sum_of_poles
from npti_export.evaluation.intervals import Estimate
from npti_export.evaluation.report.pages import rendered
from npti_export.evaluation.report.pictures import drawn, png, svg
from npti_export.evaluation.report.published_figures import SOURCE, published_for
from npti_export.evaluation.report.table import certainty_lines, verdict_lines
from npti_export.evaluation.results import Evaluation, PersonalityResult
from npti_export.identification.files import write_beside

TEMPLATE = "report.html.jinja"
REPORT_NAME = "report.html"
NONE = "–"
SHOWN_AT_FIRST = ("unsteered", "adapter", "persona prompt")
"""Methods whose answers are shown before the reader chooses others."""
CAPTIONS = {
    "effects": (
        "What each method does",
        "Change of the judge's score against the unsteered model, in the direction of the pole, with 95 % intervals "
        "over questions. Left of the dashed line is the wrong direction.",
    ),
    "radar": (
        "The five traits, method by method",
        "How high each trait is rated when the model is steered to its high pole (blue), to its low pole (orange) and "
        "not at all (grey). The further apart blue and orange, the more a method does.",
    ),
    "doses": (
        "Dose curves",
        "Effect and cost over the strength, with 95 % bands. The grey bar is the recommended strength, the red line "
        "the ratio that calibrate allows unless told otherwise; a triangle marks where more has less effect.",
    ),
    "bleed": (
        "Bleed: what moves with it",
        "Steered to the personality of the row, how far the score of each trait moved towards its high end. The "
        "personality's own trait is framed; bold figures differ from 0 (95 %).",
    ),
    "neurons": (
        "Where it acts",
        "Neurons by layer: the high pole upwards, the low pole downwards.",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A picture as it stands in the page."""

    name: str
    heading: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class AnswerCell:
    """One method's answer to one question, and what the main judge gave it."""

    method: str
    text: str
    score: str
    reason: str


def write_html_report(evaluation: Evaluation, folder: Path) -> None:
    """Writes ``report.html`` and its pictures into a folder.

    Args:
        evaluation: What was found.
        folder: Made if it is not there.

    Raises:
        NptiError: If matplotlib is not installed, nothing was evaluated, or a file cannot be written.
    """
    if not evaluation.personalities:
        raise NptiError("The evaluation holds no personality, so there is nothing to report.")
    figures = drawn(evaluation)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NptiError(f"The folder {folder} cannot be made ({error.strerror}); choose another.") from None
    for name, figure in figures.items():
        write_beside(folder / f"{name}.png", png(figure))
    pictures = [Picture(name, *CAPTIONS[name], Markup(svg(figure, name))) for name, figure in figures.items()]
    write_beside(folder / REPORT_NAME, page(evaluation, pictures).encode())


def page(evaluation: Evaluation, pictures: list[Picture]) -> str:
    """The text of the page.

    Args:
        evaluation: What was found.
        pictures: In the order of the page; their elements are put in as they are.
    """
    return rendered(
        TEMPLATE,
        {"signed": signed, "interval": interval, "number": number, "share": share},
        e=evaluation,
        settings=evaluation.settings,
        scale=f"{evaluation.judge.lowest:g} to {evaluation.judge.highest:g}",
        pictures=pictures,
        verdicts=verdict_lines(evaluation),
        certainty=certainty_lines(evaluation),
        sums={
            method: {trait: sum_of_poles(evaluation, trait, method) for trait in evaluation.traits}
            for method in evaluation.methods
        },
        published=published_for(evaluation.settings.model),
        source=SOURCE,
        shown_at_first=SHOWN_AT_FIRST,
        cells=answer_cells,
        fluency_judges=[judge.name for judge in evaluation.settings.judges if judge.criterion == "fluency"],
        inventory=evaluation.sections.get("inventory"),
        capability=evaluation.sections.get("capability"),
        further=sorted(set(evaluation.sections) - {"inventory", "capability", "neurons"}),
    )


def answer_cells(result: PersonalityResult, question: int) -> Iterator[AnswerCell]:
    """Every method's answer to one question of a personality."""
    for method in result.methods:
        rating = method.rating()
        score, reason = NONE, ""
        if rating:
            value, failure = rating.scores[question], rating.failures[question]
            score = f"failed: {failure}" if value is None else f"{value:.2f}"
            reason = rating.reasons[question]
        yield AnswerCell(method.method, method.answers[question], score, reason)


def signed(value: Any) -> str:
    """An estimate of a difference, or a dictionary of one.

    >>> signed(Estimate(0.416, 0.3, 0.5))
    '+0.42 [+0.30, +0.50]'
    """
    return _written(value, "{:+.2f}")


def interval(value: Any) -> str:
    """An estimate that is no difference."""
    return _written(value, "{:.2f}")


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return NONE if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A share in percent."""
    return NONE if value is None else f"{100 * value:.0f} %"


def _written(value: Any, form: str) -> str:
    if value is None:
        return NONE
    of_value = value if isinstance(value, Estimate) else Estimate(value["mean"], value["low"], value["high"])
    mean, low, high = (form.format(part) for part in (of_value.mean, of_value.low, of_value.high))
    return f"{mean} [{low}, {high}]"
