"""An evaluation as files in a folder: JSON to go on with, Markdown for the record, HTML and pictures to look at."""

from __future__ import annotations

from pathlib import Path

from npti_export.evaluation.report.html_report import write_html_report
from npti_export.evaluation.report.table import to_markdown
from npti_export.evaluation.results import Evaluation
from npti_export.evaluation.results_file import read_results, write_results
from npti_export.identification.files import write_beside


def write_report(folder: Path, evaluation: Evaluation) -> None:
    """Writes results.json, report.md, report.html and its pictures; the figures of all are those of results.json.

    Args:
        folder: Where; made if it is not there.
        evaluation: What was found.

    Raises:
        NptiError: If something cannot be written.
    """
    write_results(folder / "results.json", evaluation)
    # Rounded twice, some figures would differ by their last digit from those of the file.
    evaluation = read_results(folder / "results.json")
    title = f"Methods side by side on {evaluation.settings.model}"
    write_beside(folder / "report.md", to_markdown(evaluation, title).encode())
    write_html_report(evaluation, folder)
