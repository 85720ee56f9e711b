"""Loading the model of a command: no code that comes with it is run, and what goes wrong is one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from npti_export.cli.loading import load_model
from npti_export.errors import NptiError


@pytest.fixture
def folder(tmp_path: Path, demo_model_folder: Path) -> Path:
    """A copy of the bundled model."""
    return Path(shutil.copytree(demo_model_folder, tmp_path / "models" / "small-chat"))


def change_config(folder: Path, **changed: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changed), encoding="utf-8")


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to itself transformers asks on standard input, which may be a chat's."""
    names = {"AutoConfig": "homegrown.Config", "AutoModelForCausalLM": "homegrown.Model"}
    change_config(folder, model_type="homegrown", auto_map=names)
    (folder / "homegrown.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    with pytest.raises(NptiError, match=r"small-chat cannot be loaded \(.*custom code") as refused:
        load_model(str(folder), "cpu", "auto", quiet=True)
    assert "\n" not in str(refused.value)
    assert asked == []
    assert not (tmp_path / "ran").exists()


def test_a_folder_below_the_home_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model, _ = load_model("~/models/small-chat", "cpu", "auto", quiet=True)
    assert model.config.name_or_path == str(folder)
    with pytest.raises(NptiError, match=f"There is no model folder {tmp_path}/models/other;"):
        load_model("~/models/other", "cpu", "auto", quiet=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"), r"cannot be loaded \(.+\)\."),
        (lambda folder: (folder / "model.safetensors").unlink(), r"cannot be loaded \(.+\); give the folder or Hub id"),
        (lambda folder: (folder / "config.json").write_text("{"), r"cannot be loaded \(.+\)"),
        (lambda folder: change_config(folder, num_hidden_layers="many"), r"cannot be loaded \(.+\)\."),
        (lambda folder: change_config(folder, intermediate_size=700), r"cannot be loaded \(.+\)\."),
    ],
    ids=["damaged weights", "no weights", "no JSON", "no number", "another shape"],
)
def test_what_cannot_be_loaded_is_one_sentence(folder: Path, damage: object, message: str) -> None:
    damage(folder)  # type: ignore[operator]
    with pytest.raises(NptiError, match=f"^The model .*small-chat {message}") as refused:
        load_model(str(folder), "cpu", "auto", quiet=True)
    assert "\n" not in str(refused.value)


def test_a_model_that_is_nowhere_and_a_device_that_is_none() -> None:
    with pytest.raises(
        NptiError, match=r"org/nowhere cannot be loaded \(.+\); .* log in with 'hf auth login' if it is"
    ):
        load_model("org/nowhere", "cpu", "auto", quiet=True)
    with pytest.raises(NptiError, match="There is no device 'abacus'; cpu or cuda is expected"):
        load_model(None, "abacus", "auto", quiet=True)
