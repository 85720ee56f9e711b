"""The placebo differs from the adapter in which neurons it moves, and in nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from adapters_for_tests import make_adapter
from chat_models import tiny_chat_model

from npti_export.adapter.adapter import PersonalityAdapter
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
