"""The scripts beside the package that a user runs from a checkout."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_protocol_with_gpt_4o_asks_for_its_key_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["personality.py", "--personality", "openness+"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "eval" / "personality.py"), run_name="__main__")
    assert left.value.code == 1
    assert "OPENAI_API_KEY" in capsys.readouterr().err


def test_the_command_line_runs_from_a_checkout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cli.py", "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "cli.py"), run_name="__main__")
    assert left.value.code == 0
    assert "identify" in capsys.readouterr().out


@pytest.mark.parametrize(("script", "own"), [("methods.py", "--max-questions"), ("stopping.py", "--test-questions")])
def test_scripts_of_traits_share_their_options(
    script: str, own: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "eval")  # as where python runs the script itself
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "eval" / script), run_name="__main__")
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for option in (own, "--model", "--trait", "--output", "--device", "--dtype", "--batch-size"):
        assert option in shown
