"""Several processes share the work and write what one writes, byte for byte."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from identify_process import TOKENIZER, chat_model, contents, personas, questions

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["npti_export.pipeline", "identify_process"])


def done_by(count: int, name: str, folder: Path) -> list[Any]:
    """What each of so many processes returns from a function of shared_work."""
    folder.mkdir(parents=True)
    ends, started = [], []
    for which in range(count):
        hears, says = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=_joined, args=(name, which, count, folder, says))
        process.start()
        says.close()
        ends.append(hears)
        started.append(process)
    returned = [hears.recv() for hears in ends]
    for process in started:
        process.join()
        assert process.exitcode == 0
    return returned


def _joined(*arguments: Any) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from shared_work import joined

    joined(*arguments)


def test_what_processes_exchange(tmp_path: Path) -> None:
    for which, given in enumerate(done_by(3, "exchange", tmp_path / "three")):
        assert given["processes"] == 3
        assert given["sum"] == [1 + 2 + 3, 3 * 2**40]
        assert given["from_all"] == [0, 10, 20]
        assert given["first"] == "by 0"
        assert given["raised"] == "no room, says 0"
        assert given["turns"] == [("abc"[which], ["a", "b", "c"])]
    for which, given in enumerate(done_by(2, "exchange", tmp_path / "two")):
        assert given["turns"] == [("ab"[which], ["a", "b"]), ("c" if which == 0 else None, ["c"])]


def test_two_and_three_processes_elicit_and_measure_the_same_bytes(tmp_path: Path) -> None:
    one = done_by(1, "elicit_and_measure", tmp_path / "1")
    whole = contents(tmp_path / "1" / "adapter")
    assert "statistics/openness_high.safetensors" in whole
    given = contents(tmp_path / "1" / "given")
    assert sum(one[0]) == 24
    for count in (2, 3):
        told = done_by(count, "elicit_and_measure", tmp_path / str(count))
        assert contents(tmp_path / str(count) / "adapter") == whole
        assert contents(tmp_path / str(count) / "given") == given
        assert [sum(steps) for steps in told] == [24] * count


@pytest.mark.slow
def test_two_processes_identify_the_same_bytes(tmp_path: Path) -> None:
    [reasons] = done_by(1, "identify", tmp_path / "1")
    assert done_by(2, "identify", tmp_path / "2") == [reasons, reasons]
    assert contents(tmp_path / "2" / "adapter") == contents(tmp_path / "1" / "adapter")


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path: Path) -> None:
    """``accelerate launch`` starts the same torch.distributed.run, but only where there are GPUs."""
    chat_model().save_pretrained(tmp_path / "tiny-chat")
    TOKENIZER.save_pretrained(tmp_path / "tiny-chat")
    asked = [{"question": question.text, "facet": question.facet} for question in questions("openness", 14)]
    described = [{"trait": p.trait, "pole": p.pole, "text": p.text} for p in personas("openness")]
    for name, records in (("questions", asked), ("personas", described)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    given = ["--trait", "openness", "--model", str(tmp_path / "tiny-chat")]
    material = [f"--{name}={tmp_path / name}.jsonl" for name in ("questions", "personas")]
    # Alone, because otherwise every run on the machine meets at the same port.
    alone = ["--standalone", "--local-addr", "127.0.0.1"]
    two = ["torch.distributed.run", *alone, "--nproc-per-node", "2", "-m", "npti_export"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for folder, begin in (("one", ["npti_export"]), ("two", two)):
        for stage in (["elicit", *given, *material], ["measure", *given]):
            command = [sys.executable, "-m", *begin, *stage, "--output", str(tmp_path / folder), "--json"]
            made = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            assert made.returncode == 0, made.stderr
            assert list(json.loads(made.stdout))  # one process spoke, not two
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
