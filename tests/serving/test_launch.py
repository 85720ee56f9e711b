"""``npti-export serve``: what is said before vLLM starts, and how it is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from adapters_for_tests import make_adapter
from transformers import LlamaForCausalLM

from npti_export.cli import main

ROOT = Path(__file__).parents[2]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *arguments])
    assert stopped.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is there")
def test_without_vllm_it_says_how_to_install_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "pip install 'npti-export[vllm]'" in refused(["--engine", "vllm"], capsys)


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``vllm`` is a package that prints what it was started with."""
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "api_server.py").write_text(
        "import json, os, sys\n"
        "print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith('NPTI_')}]))\n"
    )
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


@pytest.fixture
def place(tmp_path: Path, demo_model_folder: Path) -> Path:
    """A folder to start in, with an adapter of the bundled model that vLLM can play."""
    model = LlamaForCausalLM.from_pretrained(demo_model_folder)
    make_adapter(model).save_pretrained(tmp_path / "adapters" / "npti-demo")
    return tmp_path


def started(environment: dict[str, str], place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cli.py"), "serve", *arguments]
    return subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=120)


def test_vllm_is_started_with_the_adapter_of_the_model(stand_in: dict[str, str], place: Path) -> None:
    done = started(stand_in, place, "--personality", "openness+", "--port", "8123", "--", "--max-model-len", "256")
    arguments, settings = json.loads(done.stdout)
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert options["--served-model-name"] == "npti-demo"
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "8123"
    assert arguments[-2:] == ["--max-model-len", "256"]
    assert (place / settings["NPTI_ADAPTER"]).samefile(place / "adapters" / "npti-demo")
    assert settings["NPTI_PERSONALITY"] == "openness+"
    assert "openness+, openness-" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--personality", "anger+"], "there is no trait 'anger'"),
        (["--model", "org/unknown"], "No adapter for org/unknown was found"),
    ],
)
def test_what_cannot_be_served_is_said_before_vllm_starts(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("npti_export.serving.launch.find_spec", lambda _name: object())
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("vLLM was started"))
    assert said in refused(["--engine", "vllm", *arguments], capsys)
