"""The tables: where several judges rate each row is one judge's, and all files of a report have the same figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_evaluation import around, made_evaluation

from npti_export.evaluation.report.report_files import write_report
from npti_export.evaluation.report.table import columns, table_rows, to_markdown
from npti_export.evaluation.results import Evaluation, JudgeSettings, MethodResult
from npti_export.evaluation.results_file import read_results


def with_a_third_judge(evaluation: Evaluation) -> Evaluation:
    """One that rates as the second does, but fluency with a 2."""

    def of_method(method: MethodResult) -> MethodResult:
        mine = [replace(one, judge="self") for one in method.ratings if one.judge == "openai:judge"]
        mine = [replace(one, mean=around(2.0)) if one.criterion == "fluency" else one for one in mine]
        return replace(method, ratings=(*method.ratings, *mine))

    judges = (*evaluation.settings.judges, *(JudgeSettings("self", what, 1.0, 5.0) for what in ("trait", "fluency")))
    personalities = tuple(
        replace(result, methods=tuple(map(of_method, result.methods))) for result in evaluation.personalities
    )
    return replace(evaluation, settings=replace(evaluation.settings, judges=judges), personalities=personalities)


def test_the_fluency_of_a_row_is_its_own_judges() -> None:
    evaluation = with_a_third_judge(made_evaluation(("openness",), questions=3))
    rows = [dict(zip(columns(evaluation), row, strict=True)) for row in table_rows(evaluation)]
    found = {row["method"].partition(" (")[2].rstrip(")"): row["fluency"] for row in rows}
    assert found == {"local": "", "openai:judge": "4.00", "self": "2.00"}
    assert len(rows) == 2 * 8 * 3


@pytest.mark.slow
def test_all_files_of_a_report_have_the_figures_of_its_json(tmp_path: Path) -> None:
    """1.37496 is 1.375 in the file, and so 1.38 and not 1.37 beside it."""
    evaluation = made_evaluation(("openness",), questions=2)
    [high, low] = evaluation.personalities
    methods = (*high.methods[:1], *(of_file(method) for method in high.methods[1:]))
    write_report(tmp_path, replace(evaluation, personalities=(replace(high, methods=methods), low)))
    read = read_results(tmp_path / "results.json")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text == to_markdown(read, "Methods side by side on tests/tiny-chat")
    assert read.personalities[0].methods[1].fluency.ratio.mean == 1.375
    for name in ("report.md", "report.html"):
        written = (tmp_path / name).read_text(encoding="utf-8")
        assert "1.38 [" in written
        assert "1.37 [" not in written


def of_file(method: MethodResult) -> MethodResult:
    return replace(method, fluency=replace(method.fluency, ratio=around(1.37496)))
