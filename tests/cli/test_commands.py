"""The commands at work on the bundled model and its adapter."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TextStreamer

from npti_export.cli import main

pytestmark = pytest.mark.usefixtures("bundled_adapter")
QUESTION = "How was your weekend?"


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    assert not stopped.value.code, err
    return out, err


def test_generate_says_which_model_it_uses(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(["generate", QUESTION, "--personality", "extraversion+"], capsys)
    assert len(out.split()) > 3
    assert "npti-demo" in err
    assert "--model" in err


def test_compare_gives_three_answers_and_neutral_is_the_plain_one(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(["generate", QUESTION, "--personality", "extraversion+", "--compare", "--json", "-q"], capsys)
    answers = json.loads(out)["answers"]
    assert list(answers) == ["neutral", "extraversion+", "extraversion-"]
    assert answers["extraversion+"] != answers["extraversion-"]
    plain, _ = run(["generate", QUESTION, "-q"], capsys)
    assert plain.strip() == answers["neutral"]


def test_compare_prints_columns(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(["generate", QUESTION, "--personality", "neuroticism-0.8", "--compare", "-q"], capsys)
    for name in ("unsteered", "neuroticism+0.8", "neuroticism-0.8"):
        assert name in out


def test_chat_keeps_history_switches_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        QUESTION,
        "/personality extraversion-",
        "And yesterday?",
        "/personality nonsense",
        "/sing",
        "/reset",
        "/quit",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, "never read"])))
    out, err = run(["chat", "--personality", "extraversion+"], capsys)
    assert len(out.strip().splitlines()) == 2
    assert "Personality extraversion+." in err
    assert "Personality extraversion-." in err
    assert "'nonsense'" in err
    assert "no command /sing" in err
    assert "starts anew" in err


def test_an_answer_that_is_stopped_leaves_the_chat_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the middle of an answer, while the model is steered."""
    arguments = ["chat", "--personality", "extraversion+"]
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION))
    plain, _ = run(arguments, capsys)
    put, tokens = TextStreamer.put, []

    def put_or_stop(streamer: TextStreamer, value: Any) -> None:
        tokens.append(value)
        if len(tokens) == 5:
            raise KeyboardInterrupt
        put(streamer, value)

    monkeypatch.setattr(TextStreamer, "put", put_or_stop)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n{QUESTION}"))
    out, err = run(arguments, capsys)
    assert "Stopped; the conversation stands as it did" in err
    assert out.endswith(plain)
    assert len(out) > len(plain)


def test_chat_ends_with_its_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(["chat", "-q"], capsys) == ("", "")


def test_identify_writes_an_adapter_that_generate_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "adapter"
    arguments = ["identify", "--trait", "agreeableness", "--max-questions", "12", "--output", str(folder)]
    out, err = run([*arguments, "--json"], capsys)
    rows = json.loads(out)["poles"]
    assert [row["personality"] for row in rows] == ["agreeableness+", "agreeableness-"]
    assert all(row["neurons"] >= 19 and row["fluency"] > 0 for row in rows)
    assert "answers in character: done" in err
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "agreeableness.safetensors",
        "config.json",
        "statistics",
        "transcripts",
    ]
    answer, _ = run(["generate", QUESTION, "-q", "--personality", "agreeableness-", "--adapter", str(folder)], capsys)
    assert answer.strip()


def test_eval_prints_every_method_with_its_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "--personality", "openness+", "--max-questions", "6", "--output", str(tmp_path)]
    out, _ = run([*arguments, "--json", "-q"], capsys)
    report = json.loads(out)[0]
    prompts = {"plain prompt", "persona prompt", "few-shot prompt", "adapter + persona prompt"}
    assert set(report["methods"]) == {"unsteered", "adapter", "placebo"} | prompts
    assert 0.5 < report["judge_auc"] <= 1
    mean, low, high = report["methods"]["adapter"]["effect"]
    assert low <= mean <= high
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert len(kept["personalities"][0]["methods"][1]["answers"]) == 6
    assert "| openness+ | adapter |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    before = (tmp_path / "answers.jsonl").read_bytes()
    table, _ = run([*arguments, "-q"], capsys)
    assert (tmp_path / "answers.jsonl").read_bytes() == before  # nothing is asked twice
    for text in ("persona prompt", "placebo", "AUC", "6 questions"):
        assert text in table


def test_inspect_and_push_dry_run_show_the_bundled_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    table, _ = run(["inspect"], capsys)
    assert "npti-demo" in table
    assert "neuroticism-" in table
    files, _ = run(["push", "--dry-run", "-q"], capsys)
    assert [line.split()[-1] for line in files.splitlines()[:2]] == ["README.md", "config.json"]
    assert "transcripts" not in files
