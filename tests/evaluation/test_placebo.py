"""The placebo differs from the adapter in which neurons it moves, and in nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from adapters_for_tests import make_adapter
from chat_models import tiny_chat_model
from mixtures import MIXTURES, build

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import Method
from npti_export.adapter.residual import ResidualShift
from npti_export.evaluation.placebo import placebo_of
from npti_export.traits import Pole

WIDTH, LAYERS = 48, 3


@pytest.fixture(scope="module")
def adapter() -> PersonalityAdapter:
    """30 % of all neurons at each pole, so that most layers have too few strangers for both."""
    return make_adapter(tiny_chat_model(), seed=2)


def places(adapter: PersonalityAdapter, pole: Pole) -> set[tuple[int, int]]:
    neurons = adapter.traits["openness"].poles[pole].neurons
    return set(zip(neurons.layer.tolist(), neurons.index.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_everything_but_the_choice_is_kept(adapter: PersonalityAdapter, seed: int) -> None:
    placebo = placebo_of(adapter, "openness", seed)
    for pole in Pole:
        real, random = (x.traits["openness"].poles[pole].neurons for x in (adapter, placebo))
        for name in ("layer", "shift", "target", "delta"):
            np.testing.assert_array_equal(getattr(real, name), getattr(random, name))
        random.check(adapter.base_model, "placebo")  # sorted, in range, no neuron twice
        assert random.index.dtype == np.int32
        assert places(adapter, pole) != places(placebo, pole)
    assert not places(placebo, Pole.HIGH) & places(placebo, Pole.LOW)
    assert placebo.traits["neuroticism"] == adapter.traits["neuroticism"]
    assert placebo.base_model == adapter.base_model


@pytest.mark.parametrize("seed", range(5))
def test_strangers_are_taken_as_long_as_there_are_some(adapter: PersonalityAdapter, seed: int) -> None:
    chosen = places(adapter, Pole.HIGH) | places(adapter, Pole.LOW)
    placebo = placebo_of(adapter, "openness", seed)
    taken = places(placebo, Pole.HIGH) | places(placebo, Pole.LOW)
    for layer in range(LAYERS):
        strangers = {(layer, index) for index in range(WIDTH)} - chosen
        needed = sum(place[0] == layer for place in chosen)
        assert len(strangers & taken) == min(len(strangers), needed)


def test_the_seed_decides(adapter: PersonalityAdapter) -> None:
    first, again, other = (places(placebo_of(adapter, "openness", seed), Pole.HIGH) for seed in (0, 0, 1))
    assert first == again != other


def test_every_stranger_is_as_likely() -> None:
    """Over many seeds each neuron outside both poles is drawn about as often as the others of its layer."""
    adapter = make_adapter(tiny_chat_model(), seed=3)
    chosen = places(adapter, Pole.HIGH) | places(adapter, Pole.LOW)
    layer = min(range(LAYERS), key=lambda at: sum(place[0] == at for place in chosen))
    strangers = [index for index in range(WIDTH) if (layer, index) not in chosen]
    of_high = sum(place[0] == layer for place in places(adapter, Pole.HIGH))
    drawn = np.zeros(WIDTH)
    for seed in range(200):
        for at, index in places(placebo_of(adapter, "openness", seed), Pole.HIGH):
            drawn[index] += at == layer
    share = min(1.0, of_high / len(strangers))
    np.testing.assert_allclose(drawn[strangers] / 200, share, atol=5 * np.sqrt(share * (1 - share) / 200) + 1e-9)


def test_a_residual_becomes_a_random_vector_of_the_same_length() -> None:
    adapter = make_adapter(tiny_chat_model(), seed=2, traits=("openness",))
    record = adapter.traits["openness"]
    vector = np.random.default_rng(0).normal(0, [[0.1], [3.0]], (2, 32)).astype(np.float32)
    residual = ResidualShift(np.array([0, 2], np.int16), vector)
    low = replace(record.poles[Pole.LOW], method=Method("hybrid", min_effect_size=0.0), residual=residual)
    adapter = adapter.with_trait(replace(record, poles={**record.poles, Pole.LOW: low}))
    drawn = [placebo_of(adapter, "openness", seed).traits["openness"].poles for seed in range(40)]
    for poles in drawn:
        random = poles[Pole.LOW].residual
        random.check(adapter.base_model, "placebo")
        assert random.layer.tolist() == [0, 2]
        np.testing.assert_allclose(np.linalg.norm(random.vector, axis=1), np.linalg.norm(vector, axis=1), rtol=1e-6)
        assert poles[Pole.HIGH].residual is None
    cosines = [(p[Pole.LOW].residual.vector * vector).sum(1) / (vector**2).sum(1) for p in drawn]
    assert np.abs(np.mean(cosines, axis=0)).max() < 0.1  # one over the root of 32 · 40 is .03
    assert 0.1 < np.std(cosines) < 0.3


def test_poles_of_the_same_neurons_get_the_same_strangers() -> None:
    """As with mean-shift on half of all neurons, where two disjoint draws would have to take the adapter's own."""
    adapter = make_adapter(tiny_chat_model(), seed=2, traits=("openness",))
    record = adapter.traits["openness"]
    high = record.poles[Pole.HIGH]
    places = np.array([(layer, index) for layer in range(LAYERS) for index in range(0, WIDTH, 2)])
    half = NeuronSet(
        *(places.T[0].astype(np.int16), places.T[1].astype(np.int32)),
        *np.ones((3, len(places)), np.float32),
    )
    poles = {pole: replace(high, neurons=half) for pole in Pole}
    placebo = placebo_of(adapter.with_trait(replace(record, poles=poles)), "openness", 0)
    for of_pole in placebo.traits["openness"].poles.values():
        assert (of_pole.neurons.index % 2 == 1).all()
        of_pole.neurons.check(adapter.base_model, "placebo")


def test_in_a_mixture_of_experts_each_neuron_is_exchanged_for_one_of_the_same_expert() -> None:
    """With a dense layer, and a shared expert beside the routed ones."""
    [family] = [mixture for mixture in MIXTURES if mixture.name == "DeepseekV3"]
    adapter = make_adapter(build(family), seed=2, traits=("openness",))
    layers = adapter.base_model.neurons_per_layer
    assert any(layer.dense for layer in layers)
    assert any(layer.experts and layer.shared for layer in layers)
    placebo = placebo_of(adapter, "openness", 0)
    taken = {}
    for pole in Pole:
        real, random = (x.traits["openness"].poles[pole].neurons for x in (adapter, placebo))
        random.check(adapter.base_model, "placebo")
        for name in ("layer", "expert", "shift", "target", "delta"):
            np.testing.assert_array_equal(getattr(real, name), getattr(random, name))
        assert not np.array_equal(real.index, random.index)
        taken[pole] = set(zip(*(getattr(random, name).tolist() for name in ("layer", "expert", "index")), strict=True))
    assert not taken[Pole.HIGH] & taken[Pole.LOW]
