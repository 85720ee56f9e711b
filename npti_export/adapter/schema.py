"""The fields of config.json, each with its type and range."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field

from npti_export.traits import TRAIT_NAME

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Dose = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PoleName = Literal["high", "low"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_PRINTABLE = r"[^\p{C}\p{Zl}\p{Zp}]"
"""No control signs, line ends or signs that turn the direction of writing: these texts stand in messages."""
Text = Annotated[str, Field(max_length=300, pattern=f"^{_PRINTABLE}*$")]
_COMPONENT = _PRINTABLE.replace("]", r"/\\]") + "+"


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

    id: Annotated[str, Field(max_length=300, pattern=f"^{_COMPONENT}(/{_COMPONENT})?$")]
    revision: Text | None
    model_type: Text
    num_layers: Annotated[int, Field(ge=1, le=2**15 - 1)]
    neurons_per_layer: Annotated[list[LayerFields], Field(max_length=2**15 - 1)]
    activation: Text
    gated: bool
    fingerprint: Digest | None


class ShiftFields(_Strict):
    """How the shift of a method is made; steepness and midpoint belong to the sigmoid."""

    kind: Literal["sigmoid", "mean-difference", "none"]
    steepness: Finite = 0.0
    midpoint: Finite = 0.0


class MethodFields(_Strict):
    """The field ``method`` of a pole; which of the two thresholds it has follows from the name."""

    name: Literal["npti", "mean-shift", "residual", "hybrid", "fitted"]
    min_difference: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_effect_size: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    percentile: Annotated[float, Field(gt=0, lt=100)]
    shift: ShiftFields


class DoseFields(_Strict):
    """One point of a dose curve."""

    gamma: Dose
    effect: Finite
    fluency: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PoleFields(_Strict):
    """One pole of a trait."""

    neurons: Count
    gamma: Dose
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
    tokens: dict[Literal["high", "low"], Annotated[int, Field(ge=0, le=2**63 - 1)]]
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
    split_half_reliability: Annotated[float, Field(ge=-1, le=1)] | None
    selection_overlap: dict[PoleName, Annotated[float, Field(ge=0, le=1)]] | None = None
    delta_margin: dict[PoleName, Dose | None] | None = None
    versions: dict[Text, Text]


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
