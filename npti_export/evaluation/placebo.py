"""The placebo: as many random neurons in the same layers and experts with the same shifts, and as long a random vector
behind the same layers as the residual is, so that only the choice differs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.residual import ResidualShift
from npti_export.traits import Pole


def placebo_of(adapter: PersonalityAdapter, trait: str, seed: int) -> PersonalityAdapter:
    """The adapter with the neurons of one trait exchanged for random ones of the same layers, residuals likewise.

    In a mixture of experts each is exchanged for one of the same expert, so that it acts on as many tokens.
    Neurons that belong to neither pole are taken as long as there are enough of them, so that the placebo does not
    steer by accident; the poles share some only where they do in the adapter (``mean-shift``). Targets, shifts and
    deltas stay the same values. A residual becomes a vector of random direction and the same length.

    Args:
        adapter: The adapter.
        trait: Which trait.
        seed: Decides the neurons.
    """
    record = adapter.traits[trait]
    rng = np.random.default_rng(seed)
    index = {pole: record.poles[pole].neurons.index.copy() for pole in Pole}
    for layer, neurons in enumerate(adapter.base_model.neurons_per_layer):
        for expert in range(-1, neurons.experts):
            width = neurons.dense + neurons.shared if expert < 0 else neurons.per_expert
            places = {pole: _places(record.poles[pole].neurons, layer, expert) for pole in Pole}
            high, low = (index[pole][places[pole]] for pole in Pole)
            chosen = np.isin(np.arange(width), np.concatenate([high, low]))
            order = rng.permutation(width)
            order = np.concatenate([order[~chosen[order]], order[chosen[order]]])
            shared = np.intersect1d(high, low).size > 0
            for pole in Pole:
                drawn, left = np.split(order, [len(places[pole])])
                index[pole][places[pole]] = np.sort(drawn)
                order = order if shared else left
    poles = {
        pole: replace(
            of_pole,
            neurons=replace(of_pole.neurons, index=index[pole]),
            residual=of_pole.residual and _random_residual(of_pole.residual, rng),
        )
        for pole, of_pole in record.poles.items()
    }
    return adapter.with_trait(replace(record, poles=poles))


def _places(neurons: NeuronSet, layer: int, expert: int) -> NDArray[np.intp]:
    """Which neurons of a set are of one layer and expert; -1 is the dense or shared part."""
    of_layer = neurons.layer == layer
    if neurons.expert is None:
        return np.flatnonzero(of_layer)
    return np.flatnonzero(of_layer & (neurons.expert == expert))


def _random_residual(residual: ResidualShift, rng: np.random.Generator) -> ResidualShift:
    """Vectors of random direction, each as long as the one in its place."""
    drawn = rng.standard_normal(residual.vector.shape)
    lengths = [
        np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (residual.vector.astype(np.float64), drawn)
    ]
    return replace(residual, vector=(drawn * (lengths[0] / lengths[1])).astype(np.float32))
