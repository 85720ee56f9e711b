"""The record of judgements: appended whole, read back as it was, and a torn line costs one question."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from npti_export.errors import NptiError
from npti_export.evaluation.judges.judgement import Judgement
from npti_export.evaluation.judges.judgement_record import appending, read_record

RATED = Judgement("Why?", "Because …\n\u2028", "openness", "openai:m", 4.25, "It is.", None)
REFUSED = Judgement("Why?", "\ud800 no", "openness", "openai:m", None, "", "the judge refused: no", "fluency")


def written(path: Path, **judgements: Judgement) -> bytes:
    with appending(path) as record:
        for key, judgement in judgements.items():
            record.append(key, judgement, "raw", (5, 2))
    return path.read_bytes()


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.jsonl"
    assert read_record(path) == {}
    written(path, a=RATED)
    written(path, b=REFUSED)
    assert read_record(path) == {"a": RATED, "b": REFUSED}
    line = json.loads(path.read_text().splitlines()[0])
    assert (line["reply"], line["tokens"]) == ("raw", [5, 2])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("left", [1, 40, -2], ids=["a brace", "a part", "all but the end"])
def test_a_line_that_broke_off_costs_one_question_and_spoils_no_other(tmp_path: Path, left: int) -> None:
    path = tmp_path / "record.jsonl"
    whole = written(path, a=RATED, b=REFUSED)
    first, last = whole.splitlines(keepends=True)
    path.write_bytes(first + last[:left])
    assert read_record(path) == {"a": RATED}
    written(path, b=REFUSED)
    assert read_record(path) == {"a": RATED, "b": REFUSED}
    assert path.read_bytes() == first + last[:left] + b"\n" + last


def test_a_line_without_its_line_feed_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_bytes(written(path, a=RATED)[:-1])
    assert read_record(path) == {"a": RATED}
    written(path, b=REFUSED)
    assert read_record(path) == {"a": RATED, "b": REFUSED}


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b"4.25", b"9.0"),
        lambda line: line.replace(b"4.25", b"true"),
        lambda line: line.replace(b"4.25", b"NaN"),
        lambda line: line.replace(b"4.25", b"null"),
        lambda line: line.replace(b'"trait", "reply"', b'"wit", "reply"'),
        lambda line: line.replace(b'"failure": null', b'"failure": "no"'),
        lambda line: line.replace(b'"Why?"', b"3"),
        lambda line: b"{}\n",
        lambda line: b"[]\n",
        lambda line: b"my notes\n",
        lambda line: b"[" * 100_000 + b"\n",
    ],
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "record.jsonl"
    line = written(path, a=RATED)
    path.write_bytes(line + damage(line) + line)
    assert path.read_bytes() != line * 3
    before = path.read_bytes()
    with pytest.raises(NptiError, match=r"^Line 2 of .*record\.jsonl is no judgement"):
        read_record(path)
    assert path.read_bytes() == before


def test_threads_and_runs_that_share_a_record_do_not_mix_lines(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    long = Judgement("Why?", "x" * 20_000, "openness", "openai:m", 1.0, "", None)

    def run(name: int) -> None:
        with appending(path) as record:
            for at in range(25):
                record.append(f"{name} {at}", long, "", None)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_record(path) == {f"{name} {at}": long for name in range(4) for at in range(25)}


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.mkdir()
    with pytest.raises(NptiError, match=r"record\.jsonl cannot be opened \(Is a directory\)"), appending(path):
        pass
    with pytest.raises(NptiError, match=r"record\.jsonl cannot be read"):
        read_record(path)
    with (
        pytest.raises(NptiError, match=r"cannot be written \(No space left on device\); make room"),
        appending(Path("/dev/full")) as record,
    ):
        record.append("a", RATED, "", None)
    assert os.path.exists("/dev/full")
