"""A report as a table for people, as JSON for machines, and as Markdown for the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from npti_export.evaluation.protocol import Report

COLUMNS = ("personality", "condition", "score", "effect [95 %]", "perplexity ratio [95 %]", "failed")


def table_rows(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    """One row a personality and condition, in the order of ``COLUMNS``."""
    rows: list[tuple[str, ...]] = []
    for report in reports:
        for result in report.results.values():
            fluency = result.fluency
            unsteered = result.condition == "unsteered"
            rows.append(
                (
                    report.personality,
                    result.condition,
                    f"{result.score.mean:.2f}",
                    "" if unsteered else str(result.effect),
                    "" if unsteered else f"{fluency.mean:.2f} [{fluency.low:.2f}, {fluency.high:.2f}]",
                    str(result.failed) if result.failed else "",
                )
            )
    return rows


def judge_line(report: Report) -> str:
    """Which judge scored, on which scale, and how good it is where that is known."""
    low, high = report.scale
    known = "" if report.auc is None else f", cross-validated AUC {report.auc:.3f}"
    asked = f"{len(report.questions)} questions; bootstrap over questions"
    return f"Judge {report.judge}, {low:g} to {high:g}{known}; {asked}."


def to_markdown(reports: Sequence[Report]) -> str:
    """A Markdown table of several reports, with a line on each judge under it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in table_rows(reports)]
    lines += ["", *dict.fromkeys(f"{report.personality}: {judge_line(report)}" for report in reports)]
    return "\n".join(lines) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """Everything a report holds: settings, questions, answers, judgements, estimates."""
    return asdict(report)
