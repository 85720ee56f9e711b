"""Valid personality adapters with random neurons, for any model that can be steered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import Method, PoleRecord, TraitRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.steering.sites import describe_base_model, find_sites
from npti_export.traits import Pole

GAMMA = 1.4
SHARE = 0.3
"""Of all neurons, how many each pole has."""


def make_adapter(
    model: nn.Module, seed: int = 0, traits: Sequence[str] = ("openness", "neuroticism"), **of_pole: object
) -> PersonalityAdapter:
    """An adapter for ``model``; the two poles of a trait share no neuron, those of two traits do.

    Args:
        model: Any model that can be steered, unsteered as yet.
        seed: Of the neurons and their numbers.
        traits: Which traits it has.
        of_pole: Fields of every pole's record, such as ``positions`` or ``dropout``.
    """
    random = np.random.default_rng(seed)
    base_model = describe_base_model(model, find_sites(model))
    places = np.array(
        [
            (layer, expert, index)
            for layer, n in enumerate(base_model.neurons_per_layer)
            for expert in range(-1, n.experts)
            for index in range(n.dense + n.shared if expert < 0 else n.per_expert)
        ]
    )
    mixture = any(n.experts for n in base_model.neurons_per_layer)
    adapter = PersonalityAdapter(base_model, {})
    for trait in traits:
        order = random.permutation(len(places))
        count = int(SHARE * len(places))
        poles = {
            Pole.HIGH: _pole(places[order[:count]], random, mixture, of_pole),
            Pole.LOW: _pole(places[order[count : 2 * count]], random, mixture, of_pole),
        }
        adapter = adapter.with_trait(TraitRecord(trait, poles))
    return adapter


def with_dense_parts(adapter: PersonalityAdapter, hidden: int, layers: Sequence[int]) -> PersonalityAdapter:
    """The same adapter with random vectors for the residual stream behind some layers in every pole."""
    random = np.random.default_rng(5)
    for trait in adapter.traits.values():
        poles = {}
        for pole, record in trait.poles.items():
            vectors = random.normal(size=(len(layers), hidden)).astype(np.float32)
            poles[pole] = replace(record, residual=ResidualShift(np.array(layers, np.int16), vectors))
        adapter = adapter.with_trait(replace(trait, poles=poles))
    return adapter


def _pole(places: np.ndarray, random: np.random.Generator, mixture: bool, fields: dict[str, object]) -> PoleRecord:
    layer, expert, index = places[np.lexsort(places.T[::-1])].T
    target = random.uniform(0.1, 2.0, len(layer)).astype(np.float32)
    delta = random.uniform(0.1, 0.6, len(layer)).astype(np.float32)
    neurons = NeuronSet(
        layer.astype(np.int16),
        index.astype(np.int32),
        Method().shift(GAMMA, target, delta),
        target,
        delta,
        expert.astype(np.int16) if mixture else None,
    )
    return PoleRecord(neurons, GAMMA, **fields)  # type: ignore[arg-type]
