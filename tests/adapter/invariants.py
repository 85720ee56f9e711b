"""What an adapter must be, checked neuron by neuron in plain Python and without any of the package's own checks."""

from __future__ import annotations

import math
import re
import struct
from typing import Any

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.traits import Pole

ARRAYS = {
    "layer": "int16",
    "index": "int32",
    "shift": "float32",
    "target": "float32",
    "delta": "float32",
    "expert": "int16",
    "mean_difference": "float32",
    "effect_size": "float32",
}


def rounded(number: float) -> float:
    """To float32; infinite where float32 cannot hold it."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])
    except OverflowError:
        return math.inf


def sigmoid(exponent: float) -> float:
    return 1 / (1 + math.exp(-exponent)) if exponent > -700 else 0.0


def one_line(text: str) -> bool:
    return len(text) <= 300 and text.isprintable()


def digest(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def assert_invariants(adapter: PersonalityAdapter) -> None:
    """Every invariant that docs/format.md states."""
    model = adapter.base_model
    components = model.id.split("/")
    assert len(components) <= 2
    assert all(one_line(part) and part not in ("", ".", "..") and "\\" not in part for part in components)
    assert all(one_line(text) for text in (model.revision or "", model.model_type, model.activation))
    assert isinstance(model.gated, bool)
    assert model.fingerprint is None or digest(model.fingerprint)
    assert 1 <= model.num_layers < 2**15
    assert len(model.neurons_per_layer) == model.num_layers
    for layer in model.neurons_per_layer:
        for number in (layer.dense, layer.experts, layer.per_expert, layer.shared):
            assert type(number) is int
            assert 0 <= number < 2**31
        assert (layer.experts == 0) == (layer.per_expert == 0)
    hidden = set()
    for name, trait in adapter.traits.items():
        assert re.fullmatch("[a-z][a-z0-9_]*", name)
        assert name != "neutral"
        assert trait.name == name
        assert set(trait.poles) == {Pole.HIGH, Pole.LOW}
        assert_identification(trait.identification)
        for pole, record in trait.poles.items():
            assert_pole(record, model)
            if record.caps == "opposite":
                assert all(target > 0 for target in trait.poles[pole.opposite].neurons.target.tolist())
            if record.residual is not None:
                hidden.add(record.residual.vector.shape[1])
    assert len(hidden) <= 1


def assert_identification(found: Any) -> None:
    assert found.source in ("identified", "imported")
    assert all(text == "" or digest(text) for text in (found.questions_sha256, found.personas_sha256))
    assert 0 <= found.transcripts < 2**31
    assert set(found.tokens) == {"high", "low"}
    assert all(type(count) is int and 0 <= count < 2**63 for count in found.tokens.values())
    assert -(2**63) <= found.seed < 2**63
    assert found.split_half_reliability is None or -1 <= found.split_half_reliability <= 1
    assert all(one_line(name) and one_line(version) for name, version in found.versions.items())


def assert_pole(record: Any, model: Any) -> None:
    method = record.method
    assert method.name in ("npti", "mean-shift", "residual", "hybrid", "fitted")
    assert 0 < method.percentile < 100
    assert 0 <= method.min_difference <= 1
    assert math.isfinite(method.steepness)
    assert math.isfinite(method.midpoint)
    assert math.isfinite(record.gamma)
    assert record.gamma >= 0
    assert isinstance(record.calibrated, bool)
    assert record.caps in ("opposite", "none")
    assert record.positions in ("generated", "answer", "all", "last_prompt+generated")
    assert 0 <= record.dropout < 1
    for point in record.dose_curve:
        assert all(math.isfinite(number) for number in (point.gamma, point.effect, point.fluency))
        assert point.gamma >= 0
        assert point.fluency >= 0
    assert isinstance(record.scores, dict)
    assert_neurons(record, model)
    assert (record.residual is not None) == (method.name in ("residual", "hybrid", "fitted"))
    if record.residual is not None:
        layers, vectors = record.residual.layer, record.residual.vector
        assert (str(layers.dtype), str(vectors.dtype)) == ("int16", "float32")
        assert len(layers) >= 1
        assert vectors.shape == (len(layers), vectors.shape[1])
        assert vectors.shape[1] >= 1
        assert all(first < second for first, second in zip(layers.tolist(), layers.tolist()[1:], strict=False))
        assert all(0 <= layer < model.num_layers for layer in layers.tolist())
        assert all(math.isfinite(number) for row in vectors.tolist() for number in row)


def assert_neurons(record: Any, model: Any) -> None:
    neurons, method = record.neurons, record.method
    columns = {name: getattr(neurons, name) for name in ARRAYS}
    for name, column in columns.items():
        if column is None:
            assert name in ("expert", "mean_difference", "effect_size")
        else:
            assert (str(column.dtype), column.shape) == (ARRAYS[name], (len(neurons),))
            assert all(math.isfinite(number) for number in column.tolist())
    experts = any(layer.experts for layer in model.neurons_per_layer)
    assert (neurons.expert is not None) == experts
    if method.name in ("mean-shift", "hybrid"):
        assert neurons.mean_difference is not None
        assert neurons.effect_size is not None
        assert method.min_effect_size >= 0
    rows = [
        {name: column[at].item() for name, column in columns.items() if column is not None}
        for at in range(len(neurons))
    ]
    places = [(row["layer"], row.get("expert", -1), row["index"]) for row in rows]
    assert places == sorted(set(places))
    for row, (layer, expert, index) in zip(rows, places, strict=True):
        assert 0 <= layer < model.num_layers
        width = model.neurons_per_layer[layer]
        assert -1 <= expert < width.experts
        assert 0 <= index < (width.dense + width.shared if expert == -1 else width.per_expert)
        assert -1 <= row["delta"] <= 1
        if method.name == "npti":
            assert row["target"] > 0
            assert row["delta"] > 0
            exponent = method.steepness * (row["delta"] - method.midpoint)
            shift = rounded(record.gamma * row["target"] * sigmoid(exponent))
        elif method.name == "residual":
            shift = 0.0
        else:
            assert abs(row["effect_size"]) >= rounded(method.min_effect_size)
            shift = rounded(record.gamma * row["mean_difference"])
        assert math.isclose(row["shift"], shift, rel_tol=2e-6, abs_tol=1.2e-38)
