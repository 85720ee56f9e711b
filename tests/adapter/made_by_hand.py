"""Adapters made by hand, without any model, and a config written without the package's own code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import BaseModel, LayerNeurons
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import DosePoint, Identification, Method, PoleRecord, TraitRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.traits import Pole

IDENTIFICATION = Identification(
    questions_sha256="a" * 64,
    personas_sha256="b" * 64,
    transcripts=60,
    tokens={"high": 1200, "low": 1100},
    seed=3,
    split_half_reliability=0.987,
    versions={"torch": "2.13.0"},
)


def neurons(places: list[tuple[int, int, int]], gamma: float, seed: int, experts: bool = False) -> NeuronSet:
    """A set at these (layer, expert, index), its shift by equation 4 as written in the paper."""
    random = np.random.default_rng(seed)
    n = len(places)
    target = random.uniform(0.05, 3, n).astype(np.float32)
    delta = random.uniform(0.05, 0.9, n).astype(np.float32)
    shift = [gamma * float(a) / (1 + np.exp(-10 * (float(d) - 0.15))) for a, d in zip(target, delta, strict=True)]
    layer, expert, index = np.array(places, dtype=np.int64).reshape(n, 3).T
    return NeuronSet(
        layer=layer.astype(np.int16),
        index=index.astype(np.int32),
        shift=np.array(shift, dtype=np.float32),
        target=target,
        delta=delta,
        expert=expert.astype(np.int16) if experts else None,
        mean_difference=random.normal(size=n).astype(np.float32),
        effect_size=random.normal(size=n).astype(np.float32),
    )


def trait_record(name: str, seed: int = 0, gamma: float = 0.7, **fields: Any) -> TraitRecord:
    high = neurons([(0, -1, 3), (0, -1, 7), (2, -1, 0), (2, -1, 11)], gamma, seed)
    low = neurons([(0, -1, 1), (1, -1, 5), (1, -1, 6)], gamma, seed + 1)
    return TraitRecord(
        name,
        {
            Pole.HIGH: PoleRecord(high, gamma, calibrated=True, dose_curve=(DosePoint(0.7, 0.31, 1.25),), **fields),
            Pole.LOW: PoleRecord(low, gamma, caps="none", positions="all", dropout=0.1, **fields),
        },
        IDENTIFICATION,
    )


def base_model(identity: str = "someone/small-chat", layer: LayerNeurons | None = None, **fields: Any) -> BaseModel:
    described = {
        "revision": None,
        "model_type": "llama",
        "num_layers": 3,
        "neurons_per_layer": (layer or LayerNeurons(dense=12),) * 3,
        "activation": "silu",
        "gated": True,
        "fingerprint": "c" * 64,
    }
    return BaseModel(identity, **(described | fields))


def every_method() -> PersonalityAdapter:
    """An adapter of a mixture of experts in which every method stands, and everything that a pole may hold."""
    expert_layer = LayerNeurons(experts=4, per_expert=6, shared=8)
    model = base_model("someone/mixture", neurons_per_layer=(LayerNeurons(dense=12), expert_layer, expert_layer))
    high = [(0, -1, 3), (1, -1, 7), (1, 0, 5), (2, 3, 0)]
    low = [(0, -1, 1), (1, 1, 5), (1, 3, 5)]

    def moved_by_mean(name: str, places: list[tuple[int, int, int]], seed: int) -> PoleRecord:
        found = neurons(places, 1.0, seed, experts=True)
        effect = np.array([0.8, -0.9, 1.5, -3.0][: len(places)], np.float32)
        difference = (effect * 0.25).astype(np.float32)
        shift = np.array([2.5 * float(mean) for mean in difference], np.float32)
        delta = found.delta * np.sign(effect)
        set_ = replace(found, shift=shift, mean_difference=difference, effect_size=effect, delta=delta)
        dense = ResidualShift(np.array([1], np.int16), np.ones((1, 5), np.float32)) if name == "hybrid" else None
        return PoleRecord(set_, 2.5, Method(name, min_effect_size=0.8), caps="none", residual=dense)

    def equation_4(places: list[tuple[int, int, int]], seed: int) -> PoleRecord:
        measured = {"local": {"effect": [0.31, 0.25, 0.37], "judge": "local"}}
        curve = (DosePoint(0.7, 0.2, 1.1), DosePoint(1.4, 0.31, 1.25))
        found = neurons(places, 1.4, seed, experts=True)
        return PoleRecord(found, 1.4, calibrated=True, dose_curve=curve, scores=measured)

    hybrid = moved_by_mean("hybrid", high, 6)
    hybrid = replace(hybrid, neurons=replace(hybrid.neurons, target=-hybrid.neurons.target), caps="opposite")
    capped = neurons(low, 0.0, 7, experts=True)
    vectors = np.random.default_rng(8).normal(size=(2, 5)).astype(np.float32)
    dense = PoleRecord(
        replace(capped, mean_difference=None, effect_size=None),
        1.5,
        Method("residual", min_difference=0.2),
        caps="none",
        residual=ResidualShift(np.array([0, 2], np.int16), vectors),
    )
    traits = [
        TraitRecord("openness", {Pole.HIGH: equation_4(high, 1), Pole.LOW: equation_4(low, 2)}, IDENTIFICATION),
        TraitRecord("extraversion", {Pole.HIGH: moved_by_mean("mean-shift", high, 3), Pole.LOW: equation_4(low, 4)}),
        TraitRecord("wit", {Pole.HIGH: hybrid, Pole.LOW: dense}),
    ]
    return PersonalityAdapter(model, {trait.name: trait for trait in traits})


def write_config(folder: Path, fields: dict[str, Any]) -> None:
    """Writes config.json with its hash filled in."""

    def pretty(digest: str) -> bytes:
        whole = {**fields, "config_sha256": digest}
        return (json.dumps(whole, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()

    (folder / "config.json").write_bytes(pretty(hashlib.sha256(pretty("")).hexdigest()))
