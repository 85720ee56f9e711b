"""The entry point, where vLLM is not: it costs nothing, is found by its group, and ends a server that cannot steer."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from npti_export.errors import NptiError
from npti_export.serving import plugin
from npti_export.serving.model_names import split_model_name
from npti_export.serving.plugin import CONFIG_VARIABLES, register, take_config
from npti_export.serving.settings import ServingSettings

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CONFIG_VARIABLES.values(), "NPTI_ADMIN_KEY", "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.setenv(name, "")  # what the code under test writes there is then taken back
    monkeypatch.setattr(plugin, "_config_taken", {})


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
    ("config", "said"),
    [
        ({"npti_export": "adapters/mine"}, "has 'adapters/mine' under npti_export"),
        ({"npti_export": {}}, "has {} under npti_export"),
        ({"npti_export": {"adaptor": "adapters/mine"}}, "adapter, personality, presets, slots is expected"),
        ({"npti_export": {"admin_key": "0123456789abcdef"}}, "adapter, personality, presets, slots is expected"),
        ({"npti_export": {"personality": "openness+"}}, "NPTI_PERSONALITY is set without NPTI_ADAPTER"),
        ({"npti_export": {"adapter": "no/such/folder/at/all"}}, "no/such/folder/at/all"),
    ],
)
def test_an_additional_config_that_cannot_be_followed_ends_the_process(config: dict[str, object], said: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        take_config(config)
    assert said in str(stopped.value)


def test_an_additional_config_may_not_contradict_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NPTI_ADAPTER", str(tmp_path))
    with pytest.raises(SystemExit, match=r"says adapter 'another' and NPTI_ADAPTER says .*; give one"):
        take_config({"npti_export": {"adapter": "another"}})


def test_an_additional_config_of_others_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    take_config({"another": {"adapter": "x"}})
    take_config(object())
    assert not os.environ["NPTI_ADAPTER"]


def test_options_of_vllm_are_looked_at_before_anything_is_made_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class EngineArgs:
        additional_config: ClassVar[dict[str, object]] = {"npti_export": {"personality": "openness+"}}
        made = False

        def create_engine_config(self) -> None:
            self.made = True

    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", SimpleNamespace(EngineArgs=EngineArgs))
    register()
    once = EngineArgs.create_engine_config
    register()
    assert EngineArgs.create_engine_config is once
    options = EngineArgs()
    with pytest.raises(SystemExit, match="NPTI_PERSONALITY is set without NPTI_ADAPTER"):
        options.create_engine_config()
    assert not options.made


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("NPTI_ADMIN_KEY", "short", "NPTI_ADMIN_KEY is no key to rely on"),
        ("NPTI_ADMIN_KEY", "0123456789 abcdef", "NPTI_ADMIN_KEY is no key to rely on"),
        ("NPTI_SLOTS", "0", "NPTI_SLOTS is '0'; a number from 1"),
        ("NPTI_SLOTS", "many", "NPTI_SLOTS is 'many'"),
        ("NPTI_SLOTS", "9" * 5000, "NPTI_SLOTS is '999"),
    ],
)
def test_settings_of_the_endpoint_that_are_none_end_the_process(
    monkeypatch: pytest.MonkeyPatch, bundled_adapter: Path, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv("NPTI_ADAPTER", str(bundled_adapter))
    monkeypatch.setenv(variable, value)
    with pytest.raises(NptiError, match=said):
        ServingSettings.from_environment()


def test_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch, bundled_adapter: Path) -> None:
    monkeypatch.setenv("NPTI_ADAPTER", str(bundled_adapter))
    monkeypatch.setenv("NPTI_ADMIN_KEY", "0123456789abcdef")
    settings = ServingSettings.from_environment()
    assert (settings.admin_key, settings.slots) == ("0123456789abcdef", 16)
    assert "0123456789abcdef" not in repr(settings)


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
