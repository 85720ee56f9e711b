"""One trait's safetensors file: its bytes, and reading them back without trusting anything."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.config import FORMAT_VERSION, base_model_to_json, canonical_json, method_to_json
from npti_export.adapter.neurons import DTYPES, OPTIONAL, NeuronSet
from npti_export.adapter.records import TraitRecord
from npti_export.errors import NptiError
from npti_export.traits import Pole

HEADER_KEY = "npti_export"


def trait_to_bytes(trait: TraitRecord, model: BaseModel) -> bytes:
    """The file of one trait; the same record gives the same bytes."""
    tensors: dict[str, NDArray[Any]] = {}
    for pole, record in trait.poles.items():
        for name, array in record.neurons.arrays().items():
            tensors[f"{pole}.{name}"] = np.ascontiguousarray(array)
    return save(tensors, metadata={HEADER_KEY: canonical_json(_header(trait, model))})


def neurons_from_bytes(data: bytes, where: str) -> dict[Pole, NeuronSet]:
    """Both poles' neurons from the bytes of a trait's file, names and dtypes checked.

    Raises:
        NptiError: With what was found and what was expected.
    """
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise NptiError(f"{where} is no safetensors file that an adapter can hold ({error}).") from None
    allowed = {f"{pole}.{name}" for pole in Pole for name in DTYPES}
    needed = {f"{pole}.{name}" for pole in Pole for name in DTYPES if name not in OPTIONAL}
    if unknown := sorted(set(tensors) - allowed):
        raise NptiError(f"{where}: unknown tensor {unknown[0]!r}.")
    if missing := sorted(needed - set(tensors)):
        raise NptiError(f"{where}: the tensor {missing[0]!r} is missing.")
    return {
        pole: NeuronSet(**{name: tensors[f"{pole}.{name}"] for name in DTYPES if f"{pole}.{name}" in tensors})
        for pole in Pole
    }


def check_header(data: bytes, trait: TraitRecord, model: BaseModel, where: str) -> None:
    """Refuses a file whose own header names another trait, model or method than the config beside it."""
    length = int.from_bytes(data[:8], "little")
    try:
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        header = json.loads(metadata[HEADER_KEY])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NptiError(f"{where}: its header holds no {HEADER_KEY} description.") from None
    if header != json.loads(canonical_json(_header(trait, model))):
        raise NptiError(f"{where}: its header describes another trait, base model or method than config.json does.")


def _header(trait: TraitRecord, model: BaseModel) -> dict[str, Any]:
    described = base_model_to_json(model)
    return {
        "format_version": FORMAT_VERSION,
        "base_model": model.id,
        "trait": trait.name,
        "num_layers": model.num_layers,
        "neurons_per_layer": described["neurons_per_layer"],
        "poles": {str(pole): {"method": method_to_json(record.method)} for pole, record in trait.poles.items()},
    }
