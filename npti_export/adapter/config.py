"""config.json of an adapter folder: the records as JSON and back, every field checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from npti_export.adapter.base_model import BaseModel, LayerNeurons
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import (
    FITTED,
    HYBRID,
    MEAN_SHIFT,
    NPTI,
    RESIDUAL,
    DosePoint,
    Identification,
    Method,
    PoleRecord,
)
from npti_export.adapter.residual import ResidualShift
from npti_export.adapter.schema import (
    BaseModelFields,
    IdentificationFields,
    MethodFields,
    PoleFields,
)
from npti_export.adapter.schema import ConfigFields as ConfigFields
from npti_export.adapter.schema import TraitFields as TraitFields
from npti_export.errors import NptiError
from npti_export.traits import Pole
from npti_export.traits.spec import NEUTRAL_NAME

FORMAT_VERSION = 1
LIBRARY_NAME = "npti-export"

_KINDS = {
    NPTI: "sigmoid",
    MEAN_SHIFT: "mean-difference",
    HYBRID: "mean-difference",
    RESIDUAL: "none",
    FITTED: "none",
}
"""How the shift of each method is made."""
_THRESHOLDS = {
    NPTI: "min_difference",
    RESIDUAL: "min_difference",
    FITTED: "min_difference",
    MEAN_SHIFT: "min_effect_size",
    HYBRID: "min_effect_size",
}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks, the form that stands in tensor file headers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_config(config: dict[str, Any]) -> bytes:
    """The bytes of config.json: sorted keys, two spaces, one line feed at the end, its own hash filled in.

    Raises:
        NptiError: If it holds what JSON cannot, for example a score that is NaN.
    """
    try:
        empty = _pretty({**config, "config_sha256": ""})
        return _pretty({**config, "config_sha256": hashlib.sha256(empty).hexdigest()})
    except (TypeError, ValueError, RecursionError) as error:
        raise NptiError(f"An adapter's config holds what JSON cannot ({error}).") from None


def read_config(data: bytes, where: str) -> ConfigFields:
    """Reads and checks the bytes of config.json.

    Args:
        data: The file's bytes.
        where: The file, for messages.

    Raises:
        NptiError: With the field, what was found and what was expected.
    """
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NptiError(f"{where} is no JSON ({error}); remove it, and fetch or identify the adapter again.") from None
    if not isinstance(raw, dict) or raw.get("library_name") != LIBRARY_NAME:
        raise NptiError(f"{where} is not the config of a personality adapter (library_name is not {LIBRARY_NAME}).")
    version = raw.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise NptiError(
            f"{where} has format version {str(version)[:20]}; this release reads version {FORMAT_VERSION}: "
            "update npti-export."
        )
    try:
        config = ConfigFields.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:
            raise NptiError(f"{where} is no JSON that an adapter holds ({first['msg']}).") from None
        found = f"{first['msg']} (found {str(first['input'])[:80]!r})"
        raise NptiError(f"{where}: field {_named(*first['loc'])}: {found}.") from None
    try:
        rewritten = write_config(raw)
    except NptiError as error:
        raise NptiError(f"{where}: {error}") from None
    if rewritten != data:
        raise NptiError(
            f"{where} was changed after it was written (config_sha256 does not agree with its content); remove it, and "
            "fetch or identify the adapter again."
        )
    _check_base_model(config.base_model, where)
    neurons = base_model_from_fields(config.base_model).num_neurons
    for name, trait in config.traits.items():
        if name == NEUTRAL_NAME:
            raise NptiError(f"{where}: a trait is called {name!r}, which stands for no personality at all.")
        if trait.file != f"{name}.safetensors":
            raise NptiError(
                f"{where}: the file of {_named(name)} is {trait.file[:80]!r}, expected '{_named(name)}.safetensors'."
            )
        if set(trait.poles) != set(Pole):
            raise NptiError(f"{where}: {_named(name)} has the poles {sorted(trait.poles)}, expected high and low.")
        if set(trait.identification.tokens) != set(Pole):
            raise NptiError(f"{where}: {_named(name)} has no identification.tokens of both poles, high and low.")
        for pole, fields in trait.poles.items():
            _check_method(fields.method, f"{where}: field {_named('traits', name, 'poles', pole, 'method')}")
            if fields.neurons > neurons:
                raise NptiError(
                    f"{where}: {_named(name)} {pole} has {fields.neurons} neurons, and the base model {neurons}."
                )
    return config


def _named(*path: str | int) -> str:
    """A field as part of a sentence: on one line, and not long, whatever the file calls it."""
    return repr(".".join(map(str, path)))[1:-1][:200]


def _check_base_model(fields: BaseModelFields, where: str) -> None:
    """What cannot be said of one field of the base model alone."""
    if len(fields.neurons_per_layer) != fields.num_layers:
        raise NptiError(
            f"{where}: neurons_per_layer has {len(fields.neurons_per_layer)} entries for {fields.num_layers} layers."
        )
    for number, layer in enumerate(fields.neurons_per_layer):
        if (layer.experts == 0) != (layer.per_expert == 0):
            raise NptiError(
                f"{where}: layer {number} has {layer.experts} experts of {layer.per_expert} neurons; both or neither "
                "must be 0."
            )
    if {".", ".."} & set(fields.id.split("/")):
        raise NptiError(f"{where}: field base_model.id: {fields.id!r} is no Hub id and no name of a folder.")


def _check_method(fields: MethodFields, where: str) -> None:
    """Whether a method has the fields of its name, and no others."""
    kind = _KINDS[fields.name]
    if fields.shift.kind != kind:
        raise NptiError(f"{where}.shift.kind is {fields.shift.kind!r}, expected {kind!r} for {fields.name}.")
    expected = {"name", "percentile", "shift", _THRESHOLDS[fields.name]}
    shift = {"kind", "steepness", "midpoint"} if kind == "sigmoid" else {"kind"}
    for found, wanted in ((fields.model_fields_set, expected), (fields.shift.model_fields_set, shift)):
        if found != wanted:
            raise NptiError(f"{where} has the fields {sorted(found)}, expected {sorted(wanted)} for {fields.name}.")


def base_model_to_json(model: BaseModel) -> dict[str, Any]:
    """The field ``base_model``."""
    return asdict(model) | {"neurons_per_layer": [asdict(layer) for layer in model.neurons_per_layer]}


def base_model_from_fields(fields: BaseModelFields) -> BaseModel:
    """The base model that a checked config names."""
    layers = tuple(LayerNeurons(**layer.model_dump()) for layer in fields.neurons_per_layer)
    return BaseModel(**(fields.model_dump() | {"neurons_per_layer": layers}))


def method_to_json(method: Method) -> dict[str, Any]:
    """The field ``method`` of a pole, which holds what belongs to its name.

    Raises:
        NptiError: If there is something else than the default in what would be left out.
    """
    threshold = _THRESHOLDS.get(method.name, "min_difference")
    kind = _KINDS.get(method.name, "sigmoid")
    sigmoid = ["steepness", "midpoint"] if kind == "sigmoid" else []
    belongs = {"name", "percentile", threshold, *sigmoid}
    for field in dataclasses.fields(Method):
        value = getattr(method, field.name)
        if field.name not in belongs and value != field.default:
            raise NptiError(f"The method {method.name} has no {field.name}, and {value} was given.")
    value = getattr(method, threshold)
    return {
        "name": method.name,
        threshold: None if value is None else float(value),
        "percentile": float(method.percentile),
        "shift": {"kind": kind} | {name: float(getattr(method, name)) for name in sigmoid},
    }


def method_from_fields(fields: MethodFields) -> Method:
    """The method of a pole from its checked fields; what the file does not hold is as ``Method()`` has it."""
    given = fields.model_dump(exclude_unset=True)
    shift = given.pop("shift")
    del shift["kind"]
    return Method(**given, **shift)


def pole_to_json(pole: PoleRecord) -> dict[str, Any]:
    """One pole of a trait; 1 is written as 1.0, as it will be read."""
    return {
        "neurons": len(pole.neurons),
        "gamma": float(pole.gamma),
        "calibrated": pole.calibrated,
        "caps": pole.caps,
        "positions": pole.positions,
        "dropout": float(pole.dropout),
        "method": method_to_json(pole.method),
        "dose_curve": [{name: float(number) for name, number in asdict(point).items()} for point in pole.dose_curve],
        "scores": pole.scores,
    }


def pole_from_fields(fields: PoleFields, neurons: NeuronSet, residual: ResidualShift | None = None) -> PoleRecord:
    """The record of a pole from its checked fields, its neurons and its dense part."""
    return PoleRecord(
        neurons=neurons,
        gamma=fields.gamma,
        method=method_from_fields(fields.method),
        calibrated=fields.calibrated,
        caps=fields.caps,
        positions=fields.positions,
        dropout=fields.dropout,
        dose_curve=tuple(DosePoint(**point.model_dump()) for point in fields.dose_curve),
        scores=fields.scores,
        residual=residual,
    )


def identification_from_fields(fields: IdentificationFields) -> Identification:
    """Where the neurons of a trait came from, from a checked config."""
    return Identification(**fields.model_dump())


def _pretty(config: dict[str, Any]) -> bytes:
    text = json.dumps(config, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()
