"""Fixtures of the artefact's tests: an adapter, its folder, and a folder that was tampered with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_by_hand import base_model, every_method, trait_record, write_config
from safetensors.numpy import load, save

from npti_export.adapter.adapter import PersonalityAdapter

Tensors = dict[str, np.ndarray]


@pytest.fixture
def adapter() -> PersonalityAdapter:
    """Three traits out of order, one of them a user's own."""
    traits = [trait_record("wit", 5), trait_record("neuroticism", 9), trait_record("openness", 1)]
    return PersonalityAdapter(base_model(), {trait.name: trait for trait in traits})


@pytest.fixture
def folder(adapter: PersonalityAdapter, tmp_path: Path) -> Path:
    """That adapter, saved."""
    adapter.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def mixture() -> PersonalityAdapter:
    """An adapter of a mixture of experts in which every method stands."""
    return every_method()


@pytest.fixture
def tamper(folder: Path) -> Callable[..., Path]:
    """Changes the saved adapter and makes all hashes agree again, by code of its own: only the change is wrong."""

    def change(
        config: Callable[[dict[str, Any]], None] = lambda config: None,
        tensors: Callable[[Tensors], None] = lambda tensors: None,
        header: Callable[[dict[str, Any]], None] = lambda header: None,
    ) -> Path:
        path = folder / "openness.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        described = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["npti_export"])
        header(described)
        arrays = load(data)
        tensors(arrays)
        path.write_bytes(save(arrays, metadata={"npti_export": json.dumps(described)}))
        fields = json.loads((folder / "config.json").read_bytes())
        fields["traits"]["openness"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        config(fields)
        write_config(folder, fields)
        return folder

    return change
