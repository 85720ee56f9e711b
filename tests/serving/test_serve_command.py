"""``npti-export serve --engine transformers`` as a process: what it says, what it refuses, and how it is ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from adapters_for_tests import make_adapter
from transformers import LlamaForCausalLM

from npti_export.cli import main
from npti_export.serving.openai_server import listening

ROOT = Path(__file__).parents[2]
START_SECONDS = 300


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextmanager
def started(log: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The server as a process, once it answers."""
    port = free_port()
    command = [sys.executable, str(ROOT / "cli.py"), "serve", "--engine", "transformers", "--port", str(port)]
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, *arguments], env=os.environ | environment, stdout=written, stderr=subprocess.STDOUT
        )
    began = time.monotonic()
    try:
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() - began < START_SECONDS, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield process, f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_ended_finishes_its_answers(tmp_path: Path, demo_model_folder: Path, sign: int) -> None:
    make_adapter(LlamaForCausalLM.from_pretrained(demo_model_folder)).save_pretrained(tmp_path / "adapter")
    (tmp_path / "presets.json").write_text('{"curious": "openness+"}')
    log = tmp_path / "log"
    settings = {"NPTI_API_KEY": "sk-of-tests", "NPTI_PRESETS": str(tmp_path / "presets.json")}
    settings |= {"NPTI_ADAPTER": str(tmp_path / "adapter"), "NPTI_PERSONALITY": "neuroticism-", "OMP_NUM_THREADS": "1"}
    with started(log, **settings) as (process, address):
        client = openai.OpenAI(base_url=address, api_key="sk-of-tests", max_retries=0)
        assert [model.id for model in client.models.list()] == ["npti-demo", "npti-demo:curious"]
        stream = client.completions.create(
            model="npti-demo:curious", prompt="Hello", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = [next(iter(stream))]
        process.send_signal(sign)
        chunks += stream
        assert chunks[-1].choices[0].finish_reason == "length"
        assert process.wait(60) == 0
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
    said = log.read_text()
    assert f"Serving npti-demo at {address}; requests that name no personality are neuroticism-." in said
    assert "Traceback" not in said
    assert "sk-of-tests" not in said


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--engine", "transformers", *arguments])
    assert stopped.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_what_it_cannot_do_is_said_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "it needs --engine vllm" in refused(["--", "--max-model-len", "256"], capsys)
    assert "No adapter for org/unknown was found" in refused(["--model", "org/unknown"], capsys)
    assert "cannot be read" in refused(["--presets", str(tmp_path / "none.json")], capsys)
    with listening("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert f"The server cannot listen at 127.0.0.1:{port}" in refused(["--port", port], capsys)
    monkeypatch.setattr("npti_export.serving.openai_server.find_spec", lambda name: None if name == "uvicorn" else 1)
    assert "uvicorn is not installed" in refused([], capsys)


def test_a_personality_that_is_not_there_keeps_it_from_starting(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, demo_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(LlamaForCausalLM.from_pretrained(demo_model_folder)).save_pretrained(tmp_path)
    (tmp_path / "presets.json").write_text('{"cross": "anger+"}')
    monkeypatch.setattr("npti_export.cli.loading.load_model", lambda *_: pytest.fail("the model was loaded before"))
    for more in (["--personality", "anger+"], ["--presets", str(tmp_path / "presets.json")]):
        assert "there is no trait 'anger'" in refused(["--adapter", str(tmp_path), *more], capsys)


@pytest.mark.parametrize("key", ["sk of tests", "sk-of-tests\n", "schlüssel"])
def test_a_key_that_no_request_could_bring_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("NPTI_API_KEY", key)
    said = refused([], capsys)
    assert "NPTI_API_KEY holds a blank, a line break or a letter beyond ASCII" in said
    assert key.strip() not in said


def test_options_of_the_other_engine_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--engine", "vllm", "--batch-size", "4"])
    assert "--batch-size is for --engine transformers" in capsys.readouterr().err


def test_help_names_the_settings_of_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    said = capsys.readouterr().out
    for name in ("NPTI_API_KEY", "NPTI_PERSONALITY", "NPTI_PRESETS", "NPTI_ADAPTER", "127.0.0.1"):
        assert name in said
