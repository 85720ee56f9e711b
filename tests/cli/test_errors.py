"""Bad input: one sentence on stderr, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from npti_export.cli import main


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["identify", "--trait", "openess"], 1, ["no trait 'openess'", "openness, conscientiousness"]),
        (["identify"], 2, ["--trait", "--all-traits"]),
        (["identify", "--trait", "openness", "--max-questions", "1"], 2, ["--max-questions"]),
        (["identify", "--trait", "openness", "--seed", "-1"], 2, ["--seed", "-1 is not in the range"]),
        (["identify", "--trait", "openness", "--seed", str(2**32)], 2, ["--seed"]),
        (["identify", "--trait", "openness", "--model", "./nowhere"], 1, ["no model folder ./nowhere"]),
        (  # before the model is looked for
            ["identify", "--trait", "openness", "--model", "./nowhere", "--method", "auto", "--no-calibrate"],
            1,
            ["The method auto is chosen by measuring doses, which --no-calibrate leaves out", "hybrid or fitted."],
        ),
        (["generate", "hi", "--personality", "grumpy"], 1, ["'grumpy'", "openness+0.5"]),
        (["generate", "hi", "--personality", "openness+,openness-"], 1, ["openness stands there twice"]),
        (["generate", "hi", "--personality", "neutral", "--compare"], 1, ["--compare", "one trait", "openness+"]),
        (["generate"], 2, ["PROMPT"]),
        (["eval", "--personality", "neutral"], 1, ["steers nothing"]),
        (["eval", "--personality", "openness+,neuroticism-0"], 1, ["steers nothing, or not in every term"]),
        (["eval", "--personality", "openness+0.5", "--card"], 1, ["--card is about the recommended dose"]),
        (["eval", "--card", "--adapter", "me/of-the-hub"], 1, ["me/of-the-hub is no folder", "npti-export pull"]),
        (["eval", "--transcripts", "none.jsonl"], 1, ["There is no file none.jsonl"]),
        (["eval", "--personality", "openness+", "--judge", "gpt"], 1, ["no judge 'gpt'", "openai:MODEL"]),
        (["eval", "--personality", "bravery+"], 1, ["no trait 'bravery'"]),
        (["eval", "--tasks", "none.yaml"], 1, ["no task file none.yaml"]),
        (["eval", "--tasks", ","], 1, ["names no task"]),
        (["eval", "--inventory", "none.csv"], 1, ["inventory none.csv cannot be read"]),
        (["inspect", "./nowhere"], 1, ["'./nowhere'"]),
        (["push", "nowhere"], 1, ["no folder nowhere"]),
        (["sing"], 2, ["sing"]),
    ],
)
def test_one_sentence(arguments: list[str], code: int, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found, out, err = run(arguments, capsys)
    assert found == code
    assert out == ""
    assert "Traceback" not in err
    for part in parts:
        assert part in err
    if code == 1:
        assert err.count("\n") == 1


def test_broken_line_of_a_questions_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "What now?"}\n{"question": \n', encoding="utf-8")
    code, _, err = run(["identify", "--trait", "openness", "--questions", str(file)], capsys)
    assert code == 1
    assert "line 2" in err


def test_empty_questions_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text("", encoding="utf-8")
    code, _, err = run(["identify", "--trait", "openness", "--questions", str(file)], capsys)
    assert code == 1
    assert "no questions" in err


def test_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    code, _, err = run(["identify", "--trait", "openness", "--quiet", "--output", str(tmp_path / "file" / "x")], capsys)
    assert code == 1
    assert "cannot be written" in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_adapter_for_another_model(
    tmp_path: Path, demo_model_folder: Path, bundled_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of another shape is refused with both names."""
    from transformers import AutoConfig, AutoModelForCausalLM

    other = tmp_path / "other-model"
    shutil.copytree(demo_model_folder, other)
    config = AutoConfig.from_pretrained(other)
    config.num_hidden_layers = 2
    config.layer_types = None
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    code, _, err = run(
        [
            "generate",
            "hi",
            "--quiet",
            "--personality",
            "openness+",
            "--model",
            str(other),
            "--adapter",
            str(bundled_adapter),
        ],
        capsys,
    )
    assert code == 1
    assert "made for npti-demo" in err
    assert "other-model" in err


def test_model_without_an_adapter(tmp_path: Path, demo_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "lonely-model"
    shutil.copytree(demo_model_folder, other)
    code, _, err = run(["generate", "hi", "--quiet", "--personality", "openness+", "--model", str(other)], capsys)
    assert code == 1
    assert "No adapter for lonely-model" in err
    assert "identify" in err


def test_eval_without_transcripts_names_the_option(
    tmp_path: Path, bundled_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in bundled_adapter.iterdir():
        if file.is_file():
            shutil.copy(file, bare)
    code, _, err = run(["eval", "--quiet", "--personality", "openness+", "--adapter", str(bare)], capsys)
    assert code == 1
    assert "--transcripts" in err


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="openess"):
        main(["--debug", "identify", "--trait", "openess"])


def test_json_goes_to_stdout_alone(bundled_adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["inspect", str(bundled_adapter), "--json"], capsys)
    assert (code, err) == (0, "")
    assert json.loads(out)["base_model"]["id"] == "npti-demo"


def test_ctrl_c_says_what_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("npti_export.cli.loading.load_model", stopped)
    code, out, err = run(["generate", "hi"], capsys)
    assert (code, out) == (130, "")
    assert "nothing is left half-written" in err
    assert "identify, elicit, measure, calibrate and eval --output go on" in err
