"""``eval`` with benchmarks and an inventory beside the judges, on the bundled model and its adapter."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.card import card_text
from npti_export.cli import main
from npti_export.evaluation.report.card_scores import with_scores
from npti_export.evaluation.results_file import read_results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("bundled_adapter"),
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed"),
]

TASK = """\
task: parity
output_type: multiple_choice
dataset_path: json
test_split: test
dataset_kwargs: {{cache_dir: {folder}/cache, data_files: {{test: {folder}/docs.jsonl}}}}
doc_to_text: "Is {{{{number}}}} even?"
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
ITEMS = "label_raw,text,label_ocean,key\nOrder,Sort my screws,C,1\nOrder,Lose my keys,C,-1\n,Run up stairs,E,1\n"


def test_sections_go_into_table_report_and_card(
    tmp_path: Path, bundled_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"number": n, "answer": n % 2}) + "\n" for n in range(8)))
    (tmp_path / "parity.yaml").write_text(TASK.format(folder=tmp_path))
    (tmp_path / "items.csv").write_text(ITEMS)
    output = tmp_path / "report"
    arguments = ["eval", "--personality", "openness+", "--max-questions", "4", "--output", str(output), "-q"]
    arguments += ["--tasks", str(tmp_path / "parity.yaml"), "--inventory", str(tmp_path / "items.csv")]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    assert not stopped.value.code, err
    assert "parity" in out
    assert "Self-report, secondary" in out
    assert "it/s" not in err  # lm-eval's own bars

    evaluation = read_results(output / "results.json")
    assert set(evaluation.sections) == {"capability", "inventory", "neurons"}
    scores = evaluation.sections["capability"]["scores"]
    assert [score["personality"] for score in scores] == ["unsteered", "openness+"]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert 'id="capability"' in page
    assert "secondary" in page
    assert "Sort my screws" not in page
    for name in ("effects", "neurons"):
        assert (output / f"{name}.png").stat().st_size > 1000

    scored = with_scores(PersonalityAdapter.from_pretrained(bundled_adapter), evaluation)
    change = scores[1]["change"]
    card = card_text(scored.base_model, scored.traits)
    assert f"| `openness+` | lm-eval | parity (acc) | {change['mean']:+.1f}" in card
