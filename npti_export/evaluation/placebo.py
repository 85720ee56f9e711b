"""The placebo: as many random neurons in the same layers with the same shifts, so that only the choice differs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.traits import Pole


def placebo_of(adapter: PersonalityAdapter, trait: str, seed: int) -> PersonalityAdapter:
    """The adapter with the neurons of one trait exchanged for random ones of the same layers.

    Neurons that belong to neither pole are taken as long as a layer has enough of them, so that the placebo does not
    steer by accident, and the poles share none, as in the adapter; targets, shifts and deltas stay the same values.

    Args:
        adapter: The adapter.
        trait: Which trait.
        seed: Decides the neurons.
    """
    record = adapter.traits[trait]
    rng = np.random.default_rng(seed)
    index = {pole: record.poles[pole].neurons.index.copy() for pole in Pole}
    for layer, neurons in enumerate(adapter.base_model.neurons_per_layer):
        places = {pole: np.flatnonzero(record.poles[pole].neurons.layer == layer) for pole in Pole}
        chosen = np.isin(np.arange(neurons.dense), np.concatenate([index[pole][places[pole]] for pole in Pole]))
        order = rng.permutation(neurons.dense)
        order = np.concatenate([order[~chosen[order]], order[chosen[order]]])
        for pole in Pole:
            drawn, order = np.split(order, [len(places[pole])])
            index[pole][places[pole]] = np.sort(drawn)
    poles = {
        pole: replace(of_pole, neurons=replace(of_pole.neurons, index=index[pole]))
        for pole, of_pole in record.poles.items()
    }
    return adapter.with_trait(replace(record, poles=poles))
