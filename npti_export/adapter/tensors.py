"""One trait's safetensors file: its bytes, and reading them back without trusting anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.config import FORMAT_VERSION, base_model_to_json, canonical_json, method_to_json
from npti_export.adapter.neurons import DTYPES, OPTIONAL, NeuronSet
from npti_export.adapter.records import TraitRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.adapter.safetensors_file import MAX_DIMENSION, MAX_HEADER_BYTES, read_safetensors, strict_json
from npti_export.errors import NptiError
from npti_export.traits import Pole

HEADER_KEY = "npti_export"
NEURON_BYTES = sum(np.dtype(dtype).itemsize for dtype in DTYPES.values())
"""Of one neuron with all of its arrays: 26, and 2 for its expert."""
MAX_HIDDEN = 2**16
"""Residual streams are up to 2¹⁴ wide."""

_RESIDUAL: dict[str, type[np.generic]] = {"residual": np.float32, "residual_layer": np.int16}
_TENSORS = {f"{pole}.{name}": dtype for pole in Pole for name, dtype in (DTYPES | _RESIDUAL).items()}
_NEEDED = {f"{pole}.{name}" for pole in Pole for name in DTYPES if name not in OPTIONAL}


@dataclass(frozen=True)
class TraitFile:
    """What one trait's file holds.

    Args:
        description: The header's own account of trait, base model and methods, as JSON.
        neurons: The neurons of both poles, dtypes checked, nothing else as yet.
        residual: The dense part of both poles, None where there is none.
    """

    description: Any
    neurons: dict[Pole, NeuronSet]
    residual: dict[Pole, ResidualShift | None]


def trait_to_bytes(trait: TraitRecord, model: BaseModel) -> bytes:
    """The file of one trait; the same record gives the same bytes."""
    tensors: dict[str, NDArray[Any]] = {}
    for pole, record in trait.poles.items():
        arrays: dict[str, NDArray[Any]] = dict(record.neurons.arrays())
        if record.residual is not None:
            arrays |= {"residual": record.residual.vector, "residual_layer": record.residual.layer}
        tensors |= {f"{pole}.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(tensors, metadata={HEADER_KEY: canonical_json(_description(trait, model))})


def largest_file(neurons: int, with_residual: int, num_layers: int) -> int:
    """How many bytes a trait's file may have, so that a larger one is refused before it is read.

    Args:
        neurons: Of both poles together, as config.json says.
        with_residual: How many of the poles have a dense part.
        num_layers: Of the base model.
    """
    dense = num_layers * (2 + 4 * MAX_HIDDEN)
    return 8 + MAX_HEADER_BYTES + neurons * NEURON_BYTES + with_residual * dense


def trait_from_bytes(data: bytes, where: str) -> TraitFile:
    """The content of a trait's file; names, dtypes and sizes are checked.

    Raises:
        NptiError: With what was found and what was expected.
    """
    metadata, tensors = read_safetensors(data, _TENSORS, where)
    if missing := sorted(_NEEDED - set(tensors)):
        raise NptiError(f"{where}: the tensor {missing[0]!r} is missing.")
    try:
        if set(metadata) != {HEADER_KEY}:
            raise ValueError
        description = strict_json(metadata[HEADER_KEY])
    except (ValueError, TypeError, RecursionError):
        raise NptiError(f"{where}: its header holds no {HEADER_KEY} description, or more than that.") from None
    neurons, residual = {}, {}
    for pole in Pole:
        arrays = {name: tensors[f"{pole}.{name}"] for name in DTYPES if f"{pole}.{name}" in tensors}
        neurons[pole] = NeuronSet(**arrays)
        there = [tensors.get(f"{pole}.{name}") for name in ("residual_layer", "residual")]
        if (there[0] is None) != (there[1] is None):
            raise NptiError(f"{where}: {pole} has one of residual and residual_layer; both or neither are expected.")
        residual[pole] = None if there[0] is None or there[1] is None else ResidualShift(there[0], there[1])
    return TraitFile(description, neurons, residual)


def check_description(description: Any, trait: TraitRecord, model: BaseModel, where: str) -> None:
    """Refuses a file whose own header names another trait, model or method than the config beside it."""
    try:
        difference = _difference(description, _description(trait, model))
    except (ValueError, RecursionError):  # 1e999, or nested without end
        difference = "it holds what no description does"
    if difference:
        raise NptiError(
            f"{where}: its header describes another trait, base model or method than config.json does ({difference})."
        )


def _difference(found: Any, expected: dict[str, Any]) -> str | None:
    """In which field a description is not as expected, in words.

    Compared as text, because in Python 1, 1.0 and True are equal.
    """
    if not isinstance(found, dict):
        return "it is no JSON object"
    found = found | {"neurons_per_layer": _in_runs(found.get("neurons_per_layer"))}
    for key in sorted(expected.keys() | found.keys()):
        texts = [canonical_json(fields[key]) if key in fields else "missing" for fields in (found, expected)]
        if texts[0] != texts[1]:
            return f"{_short(key)} is {_short(texts[0])}, expected {_short(texts[1])}"
    return None


def _short(text: str) -> str:
    return repr(text)[1:-1][:80]


def _description(trait: TraitRecord, model: BaseModel) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "base_model": model.id,
        "trait": trait.name,
        "num_layers": model.num_layers,
        "neurons_per_layer": _in_runs(base_model_to_json(model)["neurons_per_layer"]),
        "poles": {str(pole): {"method": method_to_json(record.method)} for pole, record in trait.poles.items()},
    }


def _in_runs(layers: Any) -> Any:
    """Layers in a row that are alike as one entry, which says how many these are where it is more than one.

    Without it the header of an 80-layer model is 6 kB long. What is no list of layers comes back as it is.
    """
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        return layers
    runs: list[tuple[dict[str, Any], int]] = []
    for layer in layers:
        entry = {name: value for name, value in layer.items() if name != "layers"}
        count = layer.get("layers", 1)
        if type(count) is not int or not 1 <= count <= MAX_DIMENSION:
            return layers
        if runs and canonical_json(runs[-1][0]) == canonical_json(entry):
            count += runs.pop()[1]
        runs.append((entry, count))
    return [entry if count == 1 else entry | {"layers": count} for entry, count in runs]
