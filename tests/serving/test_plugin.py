"""The entry point, where vLLM is not: it costs nothing, is found by its group, and ends a server that cannot steer."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from npti_export.errors import NptiError
from npti_export.serving import plugin, vllm_plugin
from npti_export.serving.model_names import split_model_name
from npti_export.serving.plugin import CONFIG_VARIABLES, TAKEN_VARIABLE, register, take_config
from npti_export.serving.settings import ServingSettings

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CONFIG_VARIABLES.values(), "NPTI_ADMIN_KEY", TAKEN_VARIABLE, *vllm_plugin.REFUSED_VARIABLES):
        monkeypatch.setenv(name, "")  # what the code under test writes there is then taken back


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


@pytest.mark.parametrize("name", ["NPTI_PERSONALITY", "NPTI_PRESETS", "NPTI_SLOTS", "NPTI_ADMIN_KEY"])
def test_settings_without_an_adapter_end_the_process(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "openness+")
    with pytest.raises(SystemExit, match=f"{name} is set without NPTI_ADAPTER"):
        register()


def test_an_adapter_that_cannot_be_read_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NPTI_ADAPTER", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^npti-export: .*config\.json"):
        register()


@pytest.mark.parametrize(
    "name", ["VLLM_USE_V2_MODEL_RUNNER", "VLLM_USE_RUST_FRONTEND", "VLLM_SKIP_MODEL_NAME_VALIDATION"]
)
def test_parts_of_vllm_that_are_not_steered_are_refused(
    monkeypatch: pytest.MonkeyPatch, bundled_adapter: Path, name: str
) -> None:
    monkeypatch.setenv("NPTI_ADAPTER", str(bundled_adapter))
    monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit, match=f"{name} is set"):
        register()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"npti_export": "adapters/mine"}, "has 'adapters/mine' under npti_export"),
        ({"npti_export": {}}, "has {} under npti_export"),
        ({"npti_export": {"adaptor": "adapters/mine"}}, "adapter, personality, presets, slots is expected"),
        ({"npti_export": {"admin_key": "0123456789abcdef"}}, "adapter, personality, presets, slots is expected"),
        ({"npti_export": {"adapter": None}}, "says adapter None under npti_export"),
        ({"npti_export": {"adapter": ""}}, "says adapter '' under npti_export"),
        ({"npti_export": {"slots": True}}, "says slots True under npti_export"),
        ({"npti_export": {"personality": "openness+"}}, "NPTI_PERSONALITY is set without NPTI_ADAPTER"),
        ({"npti_export": {"presets": "presets.json"}}, "NPTI_PRESETS is set without NPTI_ADAPTER"),
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


def test_the_processes_that_vllm_starts_may_take_the_same_config_again(
    monkeypatch: pytest.MonkeyPatch, bundled_adapter: Path
) -> None:
    """By then the adapter's variable names the whole path of the folder that the first process found."""
    monkeypatch.setattr(vllm_plugin, "install", ServingSettings.from_environment)
    monkeypatch.chdir(bundled_adapter.parent)
    config = {"npti_export": {"adapter": bundled_adapter.name, "personality": "openness+", "slots": 3}}
    take_config(config)
    assert os.environ["NPTI_ADAPTER"] == str(bundled_adapter.parent.resolve() / bundled_adapter.name)
    importlib.reload(plugin).take_config(config)  # nothing but the environment is left in another process
    with pytest.raises(SystemExit, match="says slots '4' and NPTI_SLOTS says '3'; give one"):
        take_config({"npti_export": {"slots": 4}})
    monkeypatch.setenv("NPTI_ADAPTER", "")
    take_config(config)
    assert Path(os.environ["NPTI_ADAPTER"]).is_absolute()


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


def test_settings_beside_the_options_are_held_against_them(
    monkeypatch: pytest.MonkeyPatch, bundled_adapter: Path
) -> None:
    """The key of the endpoint may only stand in the environment, the adapter may stand in the options."""

    class EngineArgs:
        def __init__(self, additional_config: dict[str, object]) -> None:
            self.additional_config, self.made = additional_config, False

        def create_engine_config(self) -> None:
            self.made = True

    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", SimpleNamespace(EngineArgs=EngineArgs))
    monkeypatch.setattr(vllm_plugin, "install", lambda: None)
    monkeypatch.setenv("NPTI_ADMIN_KEY", "0123456789abcdef")
    register()
    with pytest.raises(SystemExit, match="NPTI_ADMIN_KEY is set without NPTI_ADAPTER"):
        EngineArgs({}).create_engine_config()
    options = EngineArgs({"npti_export": {"adapter": str(bundled_adapter)}})
    options.create_engine_config()
    assert options.made


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("NPTI_ADMIN_KEY", "short", "NPTI_ADMIN_KEY is no key to rely on"),
        ("NPTI_ADMIN_KEY", "0123456789 abcdef", "NPTI_ADMIN_KEY is no key to rely on"),
        ("NPTI_SLOTS", "0", "NPTI_SLOTS is '0'; a number from 1"),
        ("NPTI_SLOTS", "many", "NPTI_SLOTS is 'many'"),
        ("NPTI_SLOTS", "9" * 5000, "NPTI_SLOTS is '999"),
        ("NPTI_SLOTS", "000000001999", "NPTI_SLOTS is '000000001999'"),
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
