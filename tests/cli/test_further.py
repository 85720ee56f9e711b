"""``eval`` with benchmarks and an inventory beside the judges, on the bundled model and its adapter."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.cli import main
from npti_export.evaluation.results_file import read_results
from npti_export.traits import Pole

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


def task_file(folder: Path) -> str:
    (folder / "docs.jsonl").write_text("".join(json.dumps({"number": n, "answer": n % 2}) + "\n" for n in range(8)))
    (folder / "parity.yaml").write_text(TASK.format(folder=folder))
    return str(folder / "parity.yaml")


def test_sections_go_into_table_report_and_card(
    tmp_path: Path, bundled_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = shutil.copytree(bundled_adapter, tmp_path / "adapter")
    (tmp_path / "items.csv").write_text(ITEMS)
    output = tmp_path / "report"
    arguments = ["eval", "--personality", "openness+", "--max-questions", "4", "--output", str(output), "-q"]
    arguments += ["--adapter", str(adapter), "--card"]
    arguments += ["--tasks", task_file(tmp_path), "--inventory", str(tmp_path / "items.csv")]
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

    change = scores[1]["change"]
    card = (adapter / "README.md").read_text(encoding="utf-8")
    assert f"| `openness+` | lm-eval | parity (acc) | {change['mean']:+.1f}" in card
    before, after = (PersonalityAdapter.from_pretrained(folder) for folder in (bundled_adapter, adapter))
    of_pole = after.traits["openness"].poles[Pole.HIGH].scores["local"]
    effect = evaluation.personalities[0].method("adapter").rating().effect
    assert of_pole["effect"] == pytest.approx([effect.mean, effect.low, effect.high], abs=1e-4)
    assert of_pole["questions"] == 4
    assert after.traits["openness"].poles[Pole.LOW] == before.traits["openness"].poles[Pole.LOW]


def test_benchmarks_are_of_the_strength_that_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "--personality", "openness+0.5", "--max-questions", "2", "--tasks", task_file(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--json", "-q"])
    out, err = capsys.readouterr()
    assert not stopped.value.code, err
    scores = json.loads(out)["capability"]["scores"]
    assert [score["personality"] for score in scores] == ["unsteered", "openness+0.5"]
