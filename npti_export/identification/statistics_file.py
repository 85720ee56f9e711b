"""The statistics of one pole as a safetensors file: the same statistics give the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.config import base_model_from_fields, base_model_to_json, canonical_json
from npti_export.adapter.schema import BaseModelFields
from npti_export.errors import NptiError
from npti_export.identification.files import write_beside
from npti_export.identification.statistics import (
    EXPERT_TOTALS,
    SUMS,
    ExpertTotals,
    NeuronCounts,
    NeuronStatistics,
    bin_edges,
)
from npti_export.traits import Pole

HEADER_KEY = "npti_export"
FORMAT_VERSION = 2
"""Of 1 the bins of the histogram were others: such a file is measured again."""
_SCALARS = ("answers", "tokens", "token_squares")
EXPERT_PREFIX = "expert_"
"""Of the totals of routed experts, int64 [2, experts of all layers], which only a mixture of experts has."""
_HISTOGRAM_DTYPES = (np.uint8, np.uint16, np.int32)
"""The narrowest that holds the largest count is taken: for 100 answers half or a quarter of the size in memory."""


def write_statistics(path: Path, statistics: NeuronStatistics, base_model: BaseModel, trait: str, pole: Pole) -> None:
    """Writes the statistics of one pole, beside their place first.

    Bins below the first and above the last that counted anything in any neuron are left out.

    Args:
        path: Where.
        statistics: Of all answers at that pole.
        base_model: The model that gave the answers.
        trait: The trait that it was asked for.
        pole: Which end.

    Raises:
        NptiError: If the file cannot be written.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for name in (*_SCALARS, *SUMS):
        tensors[name] = np.array([getattr(half, name) for half in statistics.halves], dtype=np.int64)
    used = np.flatnonzero(statistics.histogram.any(axis=0))
    begin, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    kept = statistics.histogram[:, begin:end]
    largest = int(kept.max(initial=0))
    dtype = next(dtype for dtype in _HISTOGRAM_DTYPES if largest <= np.iinfo(dtype).max)
    experts = [half.experts for half in statistics.halves if half.experts is not None]
    for name in EXPERT_TOTALS if experts else ():
        tensors[EXPERT_PREFIX + name] = np.array([getattr(half, name) for half in experts], dtype=np.int64)
    tensors["histogram"] = np.ascontiguousarray(kept.astype(dtype))
    tensors["first_bin"] = np.array([begin], dtype=np.int64)
    if statistics.stream is not None:
        tensors["stream"] = statistics.stream
    header = {
        "format_version": FORMAT_VERSION,
        "kind": "statistics",
        "base_model": base_model_to_json(base_model),
        "widths": list(statistics.widths),
        "trait": trait,
        "pole": str(pole),
    }
    write_beside(path, save(tensors, metadata={HEADER_KEY: canonical_json(header)}))


def read_statistics(path: Path, trait: str, pole: Pole) -> tuple[NeuronStatistics, BaseModel]:
    """Reads the statistics of one pole and the model that they are of, without trusting either.

    A file of before the residual stream was measured is read without it.

    Args:
        path: The file.
        trait: The trait that they must be of.
        pole: The end that they must be of.

    Raises:
        NptiError: If it is not there or not such a file; with what was found and what was expected.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise NptiError(f"{path} is not there; `npti-export measure --trait {trait}` writes it.") from None
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        raise NptiError(f"{path} is no file of statistics ({str(error)[:200]}); measure again.") from None
    try:
        header = json.loads(metadata[HEADER_KEY])
        if (header["kind"], header["format_version"]) != ("statistics", FORMAT_VERSION):
            raise ValueError(f"kind {header['kind']!r}, version {header['format_version']!r}")
        base_model = base_model_from_fields(BaseModelFields.model_validate(header["base_model"]))
        widths = tuple(int(width) for width in header["widths"])
        found = (str(header["trait"]), str(header["pole"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = " ".join(str(error).split())[:200]
        raise NptiError(f"{path} is no file of statistics of this release ({what}); measure again.") from None
    if found != (trait, str(pole)):
        raise NptiError(f"{path} holds statistics of {found[0]} {found[1]}, expected {trait} {pole}; measure again.")
    _check(path, tensors, widths, base_model)
    halves = []
    for half in (0, 1):
        answers, tokens, token_squares = (int(tensors[name][half]) for name in _SCALARS)
        sums = (tensors[name][half] for name in SUMS)
        counts = NeuronCounts(answers, tokens, token_squares, *sums)
        halves.append(replace(counts, experts=_experts(tensors, half, base_model)))
    begin = int(tensors["first_bin"][0])
    kept = tensors["histogram"]
    histogram = np.zeros((len(kept), len(bin_edges()) + 1), dtype=np.int32)
    histogram[:, begin : begin + kept.shape[1]] = kept
    return NeuronStatistics(widths, (halves[0], halves[1]), histogram, tensors.get("stream")), base_model


def _experts(tensors: dict[str, NDArray[Any]], half: int, base_model: BaseModel) -> ExpertTotals | None:
    if not base_model.num_experts:
        return None
    return ExpertTotals(base_model.neurons_per_layer, *(tensors[EXPERT_PREFIX + name][half] for name in EXPERT_TOTALS))


def _check(path: Path, tensors: dict[str, NDArray[Any]], widths: tuple[int, ...], base_model: BaseModel) -> None:
    """Refuses arrays that no measurement can have given."""
    neurons = base_model.num_neurons
    shapes: dict[str, tuple[int, ...]] = {"first_bin": (1,)}
    shapes.update(dict.fromkeys(_SCALARS, (2,)))
    shapes.update(dict.fromkeys(SUMS, (2, neurons)))
    if base_model.num_experts:
        shapes.update({EXPERT_PREFIX + name: (2, base_model.num_experts) for name in EXPERT_TOTALS})
    if "stream" in tensors:
        shapes["stream"] = (base_model.num_layers, tensors["stream"].shape[-1] if tensors["stream"].ndim else 1)
    if set(tensors) != {*shapes, "histogram"}:
        raise NptiError(f"{path} holds the tensors {sorted(tensors)}, expected {sorted([*shapes, 'histogram'])}.")
    for name, shape in shapes.items():
        array = tensors[name]
        if array.dtype != np.int64 or array.shape != shape:
            raise NptiError(f"{path}: {name} is {array.dtype} {list(array.shape)}, expected int64 {list(shape)}.")
    histogram = tensors["histogram"]
    bins = len(bin_edges()) + 1
    begin = int(tensors["first_bin"][0])
    fits = histogram.ndim == 2 and len(histogram) == neurons and 0 <= begin <= bins - histogram.shape[1]
    if not fits or histogram.dtype not in _HISTOGRAM_DTYPES:
        raise NptiError(
            f"{path}: histogram is {histogram.dtype} {list(histogram.shape)} from bin {begin} on, expected {neurons} "
            f"neurons and at most {bins} bins of unsigned counts."
        )
    tokens = tensors["tokens"]
    counted = histogram.sum(axis=1, dtype=np.int64)
    active = tensors["active"]
    own = tokens[:, None]  # of each neuron, [2, 1] or [2, N]
    if base_model.num_experts:
        halves = [_experts(tensors, half, base_model) for half in (0, 1)]
        own = np.array([of.of_neurons("tokens", int(tokens[at])) for at, of in enumerate(halves) if of is not None])
    if (own < 0).any() or (active < 0).any() or (active > own).any() or (counted != own.sum(axis=0)).any():
        raise NptiError(f"{path}: its counts do not add up to its {int(tokens.sum())} tokens; measure again.")
    if sum(widths) != neurons or len(widths) != base_model.num_layers:
        raise NptiError(f"{path}: its widths add up to {sum(widths)} neurons, its base model has {neurons}.")
