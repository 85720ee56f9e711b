"""Fixtures for all tests: nothing of the user is read or written, no Hub is asked, and models are tiny."""

from __future__ import annotations

import os

if "HF_ENDPOINT" not in os.environ:
    os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from adapters_for_tests import make_adapter
from hypothesis import settings
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.find import bundled_folder
from npti_export.demo import DEMO_MODEL

settings.register_profile("npti", deadline=None, derandomize=True)  # the same on a busy machine as on an idle one
settings.load_profile("npti")


OWN_VARIABLES = [
    f"NPTI_{name}"
    for name in ("MODEL", "ADAPTER", "PERSONALITY", "PRESETS", "SLOTS", "API_KEY", "ADMIN_KEY", "CONFIG_TAKEN")
]


@pytest.fixture(autouse=True)
def own_paths(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a home, a cache of adapters and a working directory of its own, all of them empty."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("NPTI_EXPORT_HOME", str(home / "adapters"))
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "OPENAI_BASE_URL", *OWN_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    working = home / "working"
    working.mkdir()
    monkeypatch.chdir(working)


@pytest.fixture
def demo_model_folder() -> Path:
    """Where the bundled model lies."""
    return DEMO_MODEL


@pytest.fixture
def bundled_adapter() -> Path:
    """Where the bundled model's adapter lies."""
    return bundled_folder()


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """A randomly initialised float32 Llama, fresh for every test, the same every time."""
    return tiny_models.tiny_llama()


@pytest.fixture
def tiny_adapter() -> Callable[..., PersonalityAdapter]:
    """Makes an adapter with random neurons: ``tiny_adapter(model, seed=0, traits=("openness", "neuroticism"))``."""
    return make_adapter
