"""config.json of an adapter folder: the records as JSON and back, every field checked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field, ValidationError

from npti_export.adapter.base_model import BaseModel, LayerNeurons
from npti_export.adapter.records import DosePoint, Identification, Method, PoleRecord
from npti_export.errors import NptiError
from npti_export.traits import TRAIT_NAME, Pole
from npti_export.traits.spec import NEUTRAL_NAME

FORMAT_VERSION = 1
LIBRARY_NAME = "npti-export"

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(Schema):
    model_config = ConfigDict(extra="forbid", strict=True)


class LayerFields(_Strict):
    """One entry of ``neurons_per_layer``."""

    dense: Count
    experts: Annotated[int, Field(ge=0, le=2**15 - 1)]
    per_expert: Count
    shared: Count


class BaseModelFields(_Strict):
    """The field ``base_model``."""

    id: Annotated[str, Field(min_length=1, max_length=300)]
    revision: str | None
    model_type: str
    num_layers: Annotated[int, Field(ge=1, le=2**15 - 1)]
    neurons_per_layer: list[LayerFields]
    activation: str
    gated: bool
    fingerprint: Digest | None


class ShiftFields(_Strict):
    """How the shift of the method ``npti`` grows with delta."""

    kind: Literal["sigmoid"]
    steepness: Finite
    midpoint: Finite


class MethodFields(_Strict):
    """The field ``method`` of a pole."""

    name: Literal["npti"]
    min_difference: Annotated[float, Field(ge=0, le=1)]
    percentile: Annotated[float, Field(gt=0, lt=100)]
    shift: ShiftFields


class DoseFields(_Strict):
    """One point of a dose curve."""

    gamma: Finite
    effect: Finite
    fluency: Finite


class PoleFields(_Strict):
    """One pole of a trait."""

    neurons: Count
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    calibrated: bool
    caps: Literal["opposite", "none"]
    positions: Literal["generated", "answer", "all", "last_prompt+generated"]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    method: MethodFields
    dose_curve: list[DoseFields]
    scores: dict[str, Any]


class IdentificationFields(_Strict):
    """The field ``identification``."""

    source: Literal["identified", "imported"]
    questions_sha256: Digest | Literal[""]
    personas_sha256: Digest | Literal[""]
    transcripts: Count
    tokens: dict[Literal["high", "low"], Annotated[int, Field(ge=0)]]
    seed: int
    split_half_reliability: Finite | None
    versions: dict[str, str]


class TraitFields(_Strict):
    """One entry of ``traits``."""

    file: str
    sha256: Digest
    poles: dict[Literal["high", "low"], PoleFields]
    identification: IdentificationFields


class ConfigFields(_Strict):
    """The whole of config.json."""

    format_version: Literal[1]
    library_name: Literal["npti-export"]
    config_sha256: Digest
    base_model: BaseModelFields
    traits: dict[Annotated[str, Field(pattern=f"^{TRAIT_NAME.pattern}$")], TraitFields]


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
        raise NptiError(f"{where} is no JSON ({error}); fetch or identify the adapter again.") from None
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
        field = ".".join(map(str, first["loc"]))
        raise NptiError(f"{where}: field {field}: {first['msg']} (found {str(first['input'])[:80]!r}).") from None
    try:
        rewritten = write_config(raw)
    except NptiError as error:
        raise NptiError(f"{where}: {error}") from None
    if rewritten != data:
        raise NptiError(f"{where} was changed after it was written (config_sha256 does not agree with its content).")
    if len(config.base_model.neurons_per_layer) != config.base_model.num_layers:
        raise NptiError(
            f"{where}: neurons_per_layer has {len(config.base_model.neurons_per_layer)} entries for "
            f"{config.base_model.num_layers} layers."
        )
    for name, trait in config.traits.items():
        if name == NEUTRAL_NAME:
            raise NptiError(f"{where}: a trait is called {name!r}, which stands for no personality at all.")
        if trait.file != f"{name}.safetensors":
            raise NptiError(f"{where}: the file of {name} is {trait.file!r}, expected '{name}.safetensors'.")
        if set(trait.poles) != set(Pole):
            raise NptiError(f"{where}: {name} has the poles {sorted(trait.poles)}, expected high and low.")
    return config


def base_model_to_json(model: BaseModel) -> dict[str, Any]:
    """The field ``base_model``."""
    return asdict(model) | {"neurons_per_layer": [asdict(layer) for layer in model.neurons_per_layer]}


def base_model_from_fields(fields: BaseModelFields) -> BaseModel:
    """The base model that a checked config names."""
    layers = tuple(LayerNeurons(**layer.model_dump()) for layer in fields.neurons_per_layer)
    return BaseModel(**(fields.model_dump() | {"neurons_per_layer": layers}))


def method_to_json(method: Method) -> dict[str, Any]:
    """The field ``method`` of a pole."""
    return {
        "name": method.name,
        "min_difference": float(method.min_difference),
        "percentile": float(method.percentile),
        "shift": {"kind": "sigmoid", "steepness": float(method.steepness), "midpoint": float(method.midpoint)},
    }


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


def pole_from_fields(fields: PoleFields, neurons: Any) -> PoleRecord:
    """The record of a pole from its checked fields and its neurons."""
    method = fields.method
    return PoleRecord(
        neurons=neurons,
        gamma=fields.gamma,
        method=Method(
            method.name, method.min_difference, method.percentile, method.shift.steepness, method.shift.midpoint
        ),
        calibrated=fields.calibrated,
        caps=fields.caps,
        positions=fields.positions,
        dropout=fields.dropout,
        dose_curve=tuple(DosePoint(**point.model_dump()) for point in fields.dose_curve),
        scores=fields.scores,
    )


def identification_from_fields(fields: IdentificationFields) -> Identification:
    """Where the neurons of a trait came from, from a checked config."""
    return Identification(**fields.model_dump())


def _pretty(config: dict[str, Any]) -> bytes:
    text = json.dumps(config, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()
