"""The placebo: as many random neurons in the same layers with the same shifts, so that only the choice differs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.neurons import NeuronSet
from npti_export.traits import Pole


def placebo_of(adapter: PersonalityAdapter, trait: str, seed: int) -> PersonalityAdapter:
    """The adapter with the neurons of one trait exchanged for random ones of the same layers.

    Neurons that belong to neither pole are taken as long as a layer has enough of them, so that the placebo does not
    steer by accident; targets, shifts and deltas stay the same values.

    Args:
        adapter: The adapter.
        trait: Which trait.
        seed: Decides the neurons.
    """
    record = adapter.traits[trait]
    rng = np.random.default_rng(seed)
    widths = [layer.dense for layer in adapter.base_model.neurons_per_layer]
    chosen = {(int(layer), int(at)) for pole in Pole for layer, at in _pairs(record.poles[pole].neurons)}
    poles = {}
    for pole, pole_record in record.poles.items():
        neurons = pole_record.neurons
        index = neurons.index.copy()
        for layer in np.unique(neurons.layer):
            where = np.flatnonzero(neurons.layer == layer)
            order = rng.permutation(widths[layer])
            strangers = [at for at in order if (int(layer), int(at)) not in chosen]
            others = [at for at in order if (int(layer), int(at)) in chosen]
            index[where] = np.sort((strangers + others)[: len(where)])
        poles[pole] = replace(pole_record, neurons=replace(neurons, index=index))
    return adapter.with_trait(replace(record, poles=poles))


def _pairs(neurons: NeuronSet) -> list[tuple[int, int]]:
    return list(zip(neurons.layer.tolist(), neurons.index.tolist(), strict=True))
