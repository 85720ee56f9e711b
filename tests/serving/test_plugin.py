"""The entry point, where vLLM is not: it costs nothing, is found by its group, and ends a server that cannot steer."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from npti_export.serving.model_names import split_model_name
from npti_export.serving.plugin import register

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NPTI_ADAPTER", "NPTI_PERSONALITY", "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.delenv(name, raising=False)


def test_the_entry_point_is_in_vllms_group() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"npti_export": "npti_export.serving.plugin:register"}


def test_without_an_adapter_nothing_is_imported() -> None:
    """vLLM's processes load the entry point whether it is used or not."""
    code = (
        "import sys; from npti_export.serving.plugin import register; register();"
        "print(sorted(set(sys.modules) & {'torch', 'numpy', 'vllm', 'transformers', 'huggingface_hub', 'pydantic'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_personality_without_an_adapter_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPTI_PERSONALITY", "openness+")
    with pytest.raises(SystemExit, match="NPTI_PERSONALITY is set without NPTI_ADAPTER"):
        register()


def test_an_adapter_that_cannot_be_read_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NPTI_ADAPTER", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^npti-export: .*config\.json"):
        register()


def test_the_second_model_runner_is_refused(monkeypatch: pytest.MonkeyPatch, bundled_adapter: Path) -> None:
    monkeypatch.setenv("NPTI_ADAPTER", str(bundled_adapter))
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(SystemExit, match="VLLM_USE_V2_MODEL_RUNNER is set"):
        register()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base", ("base", None)),
        ("base:openness+", ("base", "openness+")),
        ("base:", ("base", "")),
        ("org/base:v2", ("org/base:v2", None)),
        ("org/base:v2:openness+,neuroticism-0.5", ("org/base:v2", "openness+,neuroticism-0.5")),
        ("base2:openness+", ("base2:openness+", None)),
        ("", ("", None)),
    ],
)
def test_the_personality_is_taken_off_the_models_name(name: str, expected: tuple[str, str | None]) -> None:
    assert split_model_name(name, ["base", "org/base:v2"]) == expected
