"""Strength as a dial while generating: exact at every strength, continuous down to nothing, by row and by step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapters_for_tests import with_dense_parts
from torch import Tensor
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from npti_export import PersonalityAdapter, load_personality
from npti_export.errors import NptiError

IDS = torch.tensor([[5, 9, 33, 60], [7, 8, 21, 3]])
GREEDY = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def adapter(tiny_llama: LlamaForCausalLM, tiny_adapter) -> PersonalityAdapter:
    return with_dense_parts(tiny_adapter(tiny_llama), 32, layers=[1])


@torch.no_grad()
def logits(model: LlamaForCausalLM) -> Tensor:
    return model(IDS).logits


def generate(model: LlamaForCausalLM, ids: Tensor = IDS, **options: object) -> Tensor:
    """The logits of every step, [steps, rows, vocabulary]."""
    out = model.generate(ids, **GREEDY | options, return_dict_in_generate=True, output_logits=True)
    return torch.stack(out.logits)


def test_strength_is_what_the_spec_would_say(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+,neuroticism-0.5", adapter, positions="all") as personality:
        assert personality.strength == 1.0
        for strength in (0.7, 0, 2, 1.0, np.float64(0.25)):
            personality.strength = strength
            turned = logits(tiny_llama)
            assert personality.strength == strength
            with personality.using({"openness": strength, "neuroticism": -0.5 * float(strength)}):
                assert torch.equal(logits(tiny_llama), turned)
        personality.set("openness-")
        assert (personality.strength, personality.spec) == (1.0, "openness-")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("negative_targets", [False, True])
def test_distance_from_unsteered_goes_to_nothing_with_strength(tiny_llama, adapter, dtype, negative_targets) -> None:
    tiny_llama.to(dtype)
    if negative_targets:  # as mean-shift and hybrid have them
        trait = adapter.traits["openness"]
        poles = {
            pole: replace(record, neurons=replace(record.neurons, target=-record.neurons.target))
            for pole, record in trait.poles.items()
        }
        adapter = adapter.with_trait(replace(trait, poles=poles))
    personality = load_personality(tiny_llama, None, adapter, positions="all")
    plain = logits(tiny_llama)
    personality.set("openness+")
    distances = []
    for strength in (1.0, 0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-6):
        personality.strength = strength
        distances.append(float((logits(tiny_llama) - plain).double().abs().mean()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3 * distances[0]
    personality.strength = 0.0
    assert torch.equal(logits(tiny_llama), plain)
    personality.unload()


def test_rows_have_each_their_own_strength(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+", adapter, positions="all") as personality:
        alone = []
        for strength in (0.3, 0.0):
            personality.strength = strength
            alone.append(logits(tiny_llama))
        personality.strength = [0.3, 0.0]
        assert personality.strength == (0.3, 0.0)
        assert personality.spec == "openness+0.3; openness+0"
        mixed = logits(tiny_llama)
        assert torch.equal(mixed[0], alone[0][0])
        assert torch.equal(mixed[1], alone[1][1])
        personality.set(["openness+", "neuroticism-0.5"])
        personality.strength = 2
        assert personality.spec == "openness+2; neuroticism-"


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf"), "1", None, True, [], [0.5, "x"]])
def test_what_is_no_strength_is_refused_and_changes_nothing(tiny_llama, adapter, wrong: object) -> None:
    with load_personality(tiny_llama, "openness+", adapter) as personality:
        personality.strength = 0.5
        with pytest.raises(NptiError, match=r"[Ss]trength"):
            personality.strength = wrong
        assert (personality.strength, personality.spec) == (0.5, "openness+0.5")


def test_as_many_strengths_as_rows(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, ["openness+", None], adapter) as personality:
        with pytest.raises(NptiError, match="3 strengths were given for 2 rows"):
            personality.strength = [1, 2, 3]
        personality.strength = [3]
        assert personality.spec == "openness+3; neutral"
    with pytest.raises(NptiError, match="was unloaded"):
        personality.strength = 1
    with pytest.raises(NptiError, match="was unloaded"):
        personality.schedule = None


class _Turning(LogitsProcessor):
    """Turns the dial after every token, as an app does between two tokens."""

    def __init__(self, personality, strengths: list[float]) -> None:
        self.personality, self.strengths = personality, iter(strengths)

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        self.personality.strength = next(self.strengths)
        return scores


def step_by_step(model: LlamaForCausalLM, personality, strengths: list[float]) -> Tensor:
    """Greedy tokens' logits with a strength of its own for each forward, by a loop of plain forwards with a cache."""
    given, cache, out = IDS, None, []
    for step, strength in enumerate(strengths):
        personality.set({"openness": strength if step else 0})  # the prompt is not steered
        with torch.no_grad():
            result = model(given, past_key_values=cache, use_cache=True)
        cache, given = result.past_key_values, result.logits[:, -1:].argmax(-1)
        out.append(result.logits[:, -1])
    return torch.stack(out)


def test_turned_while_generating_and_by_schedule_as_forward_by_forward(tiny_llama, adapter) -> None:
    strengths = [1.0, 0.9, 0.5, 0.2, 0.0, 0.0, 0.4, 1.3]
    with load_personality(tiny_llama, "openness+", adapter, positions="all") as personality:
        expected = step_by_step(tiny_llama, personality, strengths)
    with load_personality(tiny_llama, "openness+", adapter) as personality:
        turning = LogitsProcessorList([_Turning(personality, [*strengths[1:], 1.0])])
        turned = generate(tiny_llama, logits_processor=turning)
        torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-5)  # generate reads the prompt otherwise
        personality.strength = 1.0
        steady = generate(tiny_llama)
        seen = []
        personality.schedule = lambda step: seen.append(step) or strengths[step]
        assert torch.equal(generate(tiny_llama), turned)
        assert seen == list(range(8))
        assert personality.strength == 1.0
        personality.schedule = None
        assert torch.equal(generate(tiny_llama), steady)
    assert not torch.equal(steady, turned)


def test_schedule_by_row_and_ended_by_set(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+", adapter) as personality:
        steady = generate(tiny_llama)
        personality.schedule = lambda step: [1.0, 1.0 / (1 + step)]
        faded = generate(tiny_llama)
        assert torch.equal(faded[:, 0], steady[:, 0])
        assert not torch.equal(faded[:, 1], steady[:, 1])
        personality.set("openness+")
        assert personality.schedule is None
        assert torch.equal(generate(tiny_llama), steady)


def test_plain_forward_goes_by_strength_and_asks_no_schedule(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+", adapter, positions="all") as personality:
        personality.strength = 0.5
        expected = logits(tiny_llama)
        asked = []
        personality.schedule = lambda step: asked.append(step) or 0.0
        assert torch.equal(logits(tiny_llama), expected)
        assert not asked
        generate(tiny_llama)
        assert asked == list(range(8))
        assert torch.equal(logits(tiny_llama), expected)  # and goes by it again


def test_schedule_that_fails_ends_the_call_and_leaves_no_slot_taken(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+", adapter, slots=3) as personality:
        steady = generate(tiny_llama)
        personality.schedule = lambda step: 1.0 - step / 4  # below 0 from step 5 on
        for _ in range(3):
            with pytest.raises(NptiError, match=r"A strength is -0\.25"):
                generate(tiny_llama)
        personality.schedule = None
        assert torch.equal(generate(tiny_llama), steady)
        with personality.using("neuroticism+"):  # both slots are free for them
            generate(tiny_llama)


def test_schedule_that_another_thread_ends_between_two_looks_at_it(tiny_llama, adapter) -> None:
    class Ended:
        """As if another thread set the same personality anew, which ends the schedule, once it was seen to be there."""

        def __bool__(self) -> bool:
            personality.set("openness+")
            return True

        def __call__(self, _step: int) -> float:
            return 1.0

    with load_personality(tiny_llama, "openness+", adapter) as personality:
        expected = generate(tiny_llama)
        personality.schedule = Ended()
        assert torch.equal(generate(tiny_llama), expected)


def test_dial_of_a_block_is_the_blocks(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+", adapter) as personality:
        with personality.using("neuroticism+"):
            personality.strength = 0.5
            assert personality.spec == "neuroticism+0.5"
        assert (personality.spec, personality.strength) == ("openness+", 1.0)


def test_schedules_of_threads_do_not_disturb_each_other(tiny_llama, adapter) -> None:
    def fade(pace: int) -> Tensor:
        with personality.using("openness+"):
            personality.schedule = lambda step: 1.0 / (1 + pace * step)
            return generate(tiny_llama)

    with load_personality(tiny_llama, None, adapter, slots=10) as personality:
        alone = [fade(pace) for pace in range(8)]
        with ThreadPoolExecutor(8) as pool:
            for together, one in zip(pool.map(fade, range(8)), alone, strict=True):
                assert torch.equal(together, one)
