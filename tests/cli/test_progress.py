"""How far a stage is: bars with rate and time left on a terminal, plain lines elsewhere, nothing with ``--quiet``."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from npti_export.cli import loading


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_tell_tenths_and_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 4.0, 10.0, 11.0])
    monkeypatch.setattr(loading, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with loading.stage("openness: answers", 40) as progress:
        for done in (0, 2, 2, 16, 20):
            progress(done)
    assert capsys.readouterr().err.splitlines() == [
        "openness: answers: 4/40, about 36 s left",
        "openness: answers: 20/40, about 10 s left",
        "openness: answers: done in 11 s",
    ]


def test_a_stage_that_fails_is_not_done(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        with loading.stage("openness: answers", 40) as progress:
            progress(4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert "done" not in capsys.readouterr().err


def test_a_bar_tells_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stderr", screen)
    with loading.stage("openness: answers", 40) as progress:
        for _ in range(4):
            progress(10)
    shown = screen.getvalue()
    assert "openness: answers" in shown
    assert "40/40" in shown
    assert "left" in shown
    assert "/s" in shown


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with loading.stage("openness: answers", 40, quiet=True) as progress:
        progress(40)
    assert capsys.readouterr() == ("", "")
