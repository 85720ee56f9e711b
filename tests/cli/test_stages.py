"""The commands elicit, measure and select, one after the other, on a tiny chat model on disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from identify_process import TOKENIZER, chat_model, personas, questions

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.cli import main
from npti_export.traits import Pole


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a model, questions and personas."""
    folder = tmp_path_factory.mktemp("given")
    chat_model().save_pretrained(folder / "tiny-chat")
    TOKENIZER.save_pretrained(folder / "tiny-chat")
    asked = [{"question": question.text, "facet": question.facet} for question in questions("openness", 14)]
    described = [{"trait": p.trait, "pole": p.pole, "text": p.text} for p in personas("openness")]
    for name, records in (("questions", asked), ("personas", described)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    files = [f"--{name}={folder / name}.jsonl" for name in ("questions", "personas")]
    return ["--trait", "openness", "--model", str(folder / "tiny-chat"), *files]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_one_after_the_other(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "adapter"
    output = ["--output", str(folder)]
    code, out, err = run(["elicit", *given, *output], capsys)
    assert code == 0, err
    assert "openness: high pole: " in out
    assert "broken off of 14 answers; low pole:" in out
    assert "answers in character: done" in err
    assert len((folder / "transcripts" / "openness.jsonl").read_text().splitlines()) == 28

    code, out, err = run(["measure", *given[:4], *output, "-q"], capsys)
    assert code == 0, err
    assert [line.split()[1:3] for line in out.splitlines()[:2]] == [["12", "questions"], ["14", "questions"]]
    assert "reliability " in out

    code, _, err = run(["measure", *given[:4], *output], capsys)
    assert code == 0, err
    assert re.search(
        r"^Counting 144 neurons takes 1 MB beside the model and up to \d MB of the machine's memory.$", err, re.M
    )

    code, out, err = run(["select", *given[:4], *output, "--min-difference", "0.2", "--json"], capsys)
    assert code == 0, err
    rows = json.loads(out)["poles"]
    adapter = PersonalityAdapter.from_pretrained(folder)
    for row, pole in zip(rows, Pole, strict=True):
        record = adapter.traits["openness"].poles[pole]
        assert row["neurons"] == len(record.neurons) > 0
        assert row["method"] == "npti"
        assert record.method.min_difference == 0.2
        assert not record.calibrated
        assert 0 <= row["selection_overlap"] <= 1
        assert 0 < row["delta_margin"] < 1
    code, out, err = run(["select", *given[:4], *output], capsys)
    assert code == 0, err
    assert "not calibrated" in out

    code, out, err = run(["identify", *given, *output, "--batch-size", "32", "--no-calibrate"], capsys)
    assert code == 0, err
    assert [line.split()[:2] for line in out.splitlines()[:2]] == [["openness+", "npti"], ["openness-", "npti"]]
    assert "effect" not in out
    not_measured = "the dose was not measured; γ 1.4 is the paper's, and `npti-export calibrate` finds"
    assert out.splitlines()[2:] == [f"openness: {not_measured} the one for this model.", f"Written to {folder}"]
    code, out, err = run(["identify", *given, *output, "--batch-size", "32", "--no-calibrate", "--json", "-q"], capsys)
    assert (code, err) == (0, "")
    for row in json.loads(out)["poles"]:
        assert (row["gamma"], row["calibrated"], row["effect"], row["fluency"]) == (1.4, False, None, None)
        assert row["reason"].startswith(not_measured)

    code, out, err = run(["identify", *given, *output, "--batch-size", "32", "--json"], capsys)
    assert code == 0, err
    for row in json.loads(out)["poles"]:
        assert row["calibrated"]
        assert row["questions"] == 14
        assert row["reason"].startswith("npti, δ ≥ 0.")
        assert row["answers"]["total"] == 14
        assert set(row["answers"]) == {"total", "empty", "refusing", "repeating", "broken_off"}
    assert all(pole.calibrated for pole in PersonalityAdapter.from_pretrained(folder).traits["openness"].poles.values())
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| personality | overlap of the halves | margin of δ |" in card


@pytest.mark.slow
def test_another_method(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "adapter")]
    mean_shift = ["--method", "mean-shift", "--max-neurons", "9", "--layers", "1-2"]
    code, out, err = run(["identify", *given, *output, *mean_shift, "-q"], capsys)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["openness+", "mean-shift", "9", "neurons"]
    assert lines[1].startswith("  mean-shift, 9 neurons of |d| ≥ ")
    assert "times the perplexity" in lines[1]
    for record in PersonalityAdapter.from_pretrained(tmp_path / "adapter").traits["openness"].poles.values():
        assert set(record.neurons.layer.tolist()) <= {1, 2}

    residual = ["--method", "residual", "--layers", "1", "--json"]
    code, out, err = run(["select", *given[:4], *output, *residual], capsys)
    assert code == 0, err
    assert {row["method"] for row in json.loads(out)["poles"]} == {"residual"}
    for record in PersonalityAdapter.from_pretrained(tmp_path / "adapter").traits["openness"].poles.values():
        assert record.residual.layer.tolist() == [1]

    code, out, err = run(["select", *given[:4], *output, "--method", "auto"], capsys)
    assert (code, out) == (1, "")
    assert "Error: The method auto is found by running the model" in err
    code, out, err = run(["select", *given[:4], *output, "--layers", "3-4"], capsys)
    assert (code, out) == (1, "")
    assert "Error: --layers is 3-4; the model has the layers 0 to 2." in err


def test_what_is_no_range_of_layers(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ("a", "1-", "-3", "1-2-3", "²"):
        code, out, err = run(["select", "--trait", "openness", f"--layers={given}"], capsys)
        assert (code, out) == (2, "")
        assert f"{given!r} is no range of layers such as 4-9" in err


def test_without_the_stage_before_the_command_is_named(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, before in (("measure", "npti-export elicit --trait openness"), ("select", "npti-export measure")):
        code, out, err = run([command, *given[:4], "--output", str(tmp_path)], capsys)
        assert (code, out) == (1, "")
        assert f"`{before}` writes" in err
        assert err.splitlines()[-1].startswith("Error: ")
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("method", "threshold", "other"),
    [
        ("npti", "--min-effect-size", "--min-difference"),
        ("residual", "--min-effect-size", "--min-difference"),
        ("mean-shift", "--min-difference", "--min-effect-size"),
        ("hybrid", "--min-difference", "--min-effect-size"),
    ],
)
def test_a_threshold_that_a_method_does_not_go_by_is_refused(
    method: str, threshold: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["select", "--trait", "openness", "--output", str(tmp_path), "--method", method]
    code, out, err = run([*given, threshold, "0.2"], capsys)
    assert (code, out) == (2, "")
    assert f"The method {method} does not go by {threshold}; {other} is its threshold." in err
    code, _, err = run([*given, other, "0.2"], capsys)
    assert (code, "is not there; `npti-export measure` writes it" in err) == (1, True)


def test_select_of_the_bundled_model_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["select", "--trait", "openness"], capsys)
    assert code == 1
    assert "bundled demo model npti-demo" in err


def test_select_needs_no_torch() -> None:
    code = (
        "import sys; from npti_export.cli import main\n"
        "try: main(['select', '--trait', 'openness'])\n"
        "except SystemExit as stopped: print(stopped.code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == ["1 False False"]


@pytest.mark.parametrize("command", ["elicit", "measure", "select"])
def test_wrong_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, part in (
        ([command], 2, "--all-traits"),
        ([command, "--trait", "openess"], 1, "no trait 'openess'"),
    ):
        found, out, err = run(arguments, capsys)
        assert (found, out) == (code, "")
        assert part in err
