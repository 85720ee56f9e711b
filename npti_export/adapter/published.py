"""Reading the results that the authors of NPTI published: ``<Trait>_dict.json`` and ``<Trait>_reversed_dict.json``.

Each is ``{"layer": [[layer, index, delta, probability, target], …], …}``, the reversed one for the low pole. Nothing in
them is trusted: a file is read whole or refused, with the layer and the row (from 1) where it is wrong.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import Identification, Method, PoleRecord, TraitRecord
from npti_export.errors import NptiError
from npti_export.traits import TRAIT_NAME, Pole, in_canonical_order
from npti_export.traits.spec import NEUTRAL_NAME

GAMMAS = {
    "openness": 0.6,
    "conscientiousness": 1.2,
    "extraversion": 1.1,
    "agreeableness": 1.4,
    "neuroticism": 1.4,
}
"""The dose at which the paper's figures show each trait at its best, for Llama-3-8B-Instruct."""
PAPER_GAMMA = 1.4
"""The dose that the paper's text gives, for any other trait."""
MAX_BYTES = 200_000_000
"""The published files take 150 bytes a neuron: this is a million neurons of one pole."""

_FILE_NAME = re.compile(r"(?P<trait>.+?)(?P<reversed>_reversed)?_dict\.json")
_ROW = "[layer, index, delta, probability, target]"
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def read_published(folder: Path, model: BaseModel) -> dict[str, TraitRecord]:
    """The traits of a folder of published results, at the paper's doses, not calibrated.

    Every row becomes a neuron, with delta and target rounded to float32; the probability is left out.

    Args:
        folder: Holds ``<Trait>_dict.json`` and ``<Trait>_reversed_dict.json`` of one trait or more; other files in it
            do not matter.
        model: The model that the results are of.

    Returns:
        The traits by name, in canonical order.

    Raises:
        NptiError: With file, layer and row, what was found and what was expected.
    """
    records = {}
    for name, files in _files(folder).items():
        method, gamma = Method(), GAMMAS.get(name, PAPER_GAMMA)
        neurons = {pole: read_neurons(files[pole], model, method, gamma) for pole in Pole}
        _check_disjoint(neurons, name, folder)
        poles = {pole: PoleRecord(neurons=neurons[pole], gamma=gamma, method=method, calibrated=False) for pole in Pole}
        records[name] = TraitRecord(name, poles, Identification(source="imported"))
    return {name: records[name] for name in in_canonical_order(records)}


def read_neurons(path: Path, model: BaseModel, method: Method, gamma: float) -> NeuronSet:
    """The neurons of one pole from a published file, sorted by layer and index.

    Args:
        path: The file.
        model: The model that its layers and indices must lie in.
        method: How a shift is made.
        gamma: The dose.

    Raises:
        NptiError: With file, layer and row, what was found and what was expected.
    """
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for key, rows in _layers(path).items():
        layer = _layer_number(key, model, path)
        if not isinstance(rows, list):
            raise NptiError(f"{path}, layer {key}: {_shown(rows)} was found, a list of rows {_ROW} was expected.")
        for number, row in enumerate(rows, 1):
            if fault := _fault(row, layer, model.neurons_per_layer[layer].dense):
                raise NptiError(f"{path}, layer {key}, row {number}: {fault}.")
            _, index, delta, _, target = row
            if (layer, index) in found:
                raise NptiError(f"{path}, layer {key}, row {number}: neuron {layer}:{index} stands there twice.")
            found[layer, index] = (float(delta), float(target))
    if not found:
        raise NptiError(f"{path} holds no rows; the neurons of a pole were expected.")
    places = np.array(sorted(found), dtype=np.int64)
    delta, target = np.array([found[layer, index] for layer, index in sorted(found)], dtype=np.float32).T
    return NeuronSet(
        layer=places[:, 0].astype(np.int16),
        index=places[:, 1].astype(np.int32),
        shift=method.shift(gamma, target, delta),
        target=np.ascontiguousarray(target),
        delta=np.ascontiguousarray(delta),
    )


def _files(folder: Path) -> dict[str, dict[Pole, Path]]:
    """The files of each trait by pole; both must be there."""
    if not folder.is_dir():
        raise NptiError(f"There is no folder {folder}; give the one with the published *_dict.json files.")
    traits: dict[str, dict[Pole, Path]] = {}
    for path in sorted(folder.iterdir()):
        if not (match := _FILE_NAME.fullmatch(path.name)):
            continue
        name = match["trait"].lower()
        if not TRAIT_NAME.fullmatch(name) or name == NEUTRAL_NAME:
            raise NptiError(f"{path}: {name!r} is no name of a trait; rename the file, such as Openness_dict.json.")
        pole = Pole.LOW if match["reversed"] else Pole.HIGH
        if pole in (poles := traits.setdefault(name, {})):
            raise NptiError(f"{path} and {poles[pole].name} are both the {pole} pole of {name}; remove one.")
        poles[pole] = path
    if not traits:
        raise NptiError(f"{folder} holds no published results; files such as Openness_dict.json were expected.")
    for poles in traits.values():
        for pole in Pole:
            if pole not in poles:
                there = poles[pole.opposite]
                raise NptiError(f"{there} stands without {_other_name(there.name)}, the {pole} pole; both are needed.")
    return traits


def _other_name(name: str) -> str:
    """The name of the opposite pole's file."""
    stem = name.removesuffix("_dict.json")
    return (stem.removesuffix("_reversed") if stem.endswith("_reversed") else f"{stem}_reversed") + "_dict.json"


def _layers(path: Path) -> dict[str, Any]:
    """The JSON object in a file; a key that stands there twice would lose rows without a word."""
    try:
        if not path.is_file():  # a pipe would never end
            raise NptiError(f"{path} is no plain file.")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise NptiError(f"{path} has {size} bytes, at most {MAX_BYTES} are expected of published results.")
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repetition)
    except OSError as error:
        raise NptiError(f"{path} cannot be read ({error.strerror}).") from None
    except RecursionError:
        raise NptiError(f"{path} is no JSON of published results (it is nested too deeply).") from None
    except _RepeatedKeyError as error:
        raise NptiError(f"{path}: the key {_shown(str(error))} stands there twice.") from None
    except ValueError as error:
        raise NptiError(f"{path} is no JSON ({error}).") from None
    if not isinstance(content, dict):
        raise NptiError(f'{path}: {_shown(content)} was found, {{"layer": [{_ROW}, …], …}} was expected.')
    return content


class _RepeatedKeyError(Exception):
    """A key stands twice in one JSON object."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    there: dict[str, Any] = {}
    for key, value in pairs:
        if key in there:
            raise _RepeatedKeyError(key)
        there[key] = value
    return there


def _layer_number(key: str, model: BaseModel, path: Path) -> int:
    if len(key) < 6 and key.isascii() and key.isdigit() and str(int(key)) == key and int(key) < model.num_layers:
        return int(key)
    raise NptiError(
        f"{path}: layer {_shown(key)} was found, numbers from 0 to {model.num_layers - 1} were expected, the layers of "
        f"{model.id}."
    )


def _fault(row: Any, layer: int, width: int) -> str | None:
    """What is wrong with a row, or None. Comparing, unlike converting, bears any number that JSON can hold."""
    if not isinstance(row, list) or len(row) != 5 or any(type(value) not in (int, float) for value in row):
        return f"{_shown(row)} was found, five numbers {_ROW} were expected"
    stands, index, delta, probability, target = row
    if type(stands) is not int or stands != layer:
        return f"it names layer {_shown(stands)}, {layer} was expected"
    if type(index) is not int or not 0 <= index < width:
        return f"index {_shown(index)} was found, a whole number from 0 to {width - 1} was expected"
    if not _SMALLEST <= delta <= 1:
        return f"delta {_shown(delta)} was found, a number above 0 and at most 1 was expected"
    if not 0 <= probability <= 1:
        return f"probability {_shown(probability)} was found, a number from 0 to 1 was expected"
    if not _SMALLEST <= target <= _LARGEST:
        return f"target {_shown(target)} was found, a finite number above 0 was expected"
    return None


def _check_disjoint(neurons: dict[Pole, NeuronSet], name: str, folder: Path) -> None:
    """No neuron fires more at both poles than at the other one."""
    places = [set(zip(found.layer.tolist(), found.index.tolist(), strict=True)) for found in neurons.values()]
    if both := sorted(places[0] & places[1]):
        raise NptiError(
            f"{folder}: neuron {both[0][0]}:{both[0][1]} stands in both files of {name}; its delta cannot be above 0 "
            "at both."
        )


def _shown(value: Any) -> str:
    """A value from a file within a message: short, and without control characters."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= 80 else text[:77] + "…"
