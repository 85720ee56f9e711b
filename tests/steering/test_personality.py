"""load_personality, set, using, disable, unload: exact where it must be, and never silently without effect."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
import torch
from adapters_for_tests import with_dense_parts
from equation_4 import activations_of, steered_by_hooks
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.adapter.find import cache_folder
from npti_export.errors import NptiError
from npti_export.steering.module import SteeredActivation
from npti_export.traits import Pole

SPECS = ["openness+", "neuroticism-", "openness-0.5,neuroticism+1.2", "neutral"]
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def adapter(tiny_llama: LlamaForCausalLM, tiny_adapter) -> PersonalityAdapter:
    return tiny_adapter(tiny_llama)


def prompt(rows: int = 1, length: int = 6, seed: int = 1) -> Tensor:
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: LlamaForCausalLM, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(prompt(rows=2) if ids is None else ids).logits


@pytest.mark.parametrize(("trait", "pole"), [(t, p) for t in ("openness", "neuroticism") for p in Pole])
def test_forward_equals_equation_4_in_every_layer(tiny_llama, adapter, trait: str, pole: Pole) -> None:
    activations = activations_of(tiny_llama)

    def forward() -> tuple[list[Tensor], Tensor]:
        with torch.no_grad():
            output = tiny_llama(prompt(rows=2), output_hidden_states=True)
        return list(output.hidden_states), output.logits

    with steered_by_hooks(activations, adapter, trait, pole):
        expected_layers, expected = forward()
    with load_personality(tiny_llama, f"{trait}{pole.sign}", adapter, positions="all"):
        layers, steered = forward()
    assert len(layers) == 4
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(layers, expected_layers, strict=True))
    assert torch.equal(steered, expected)
    assert not torch.equal(steered, logits(tiny_llama))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neutral_and_unloaded_are_the_untouched_model_bit_for_bit(tiny_llama, tiny_adapter, dtype) -> None:
    tiny_llama.to(dtype)
    ids = prompt(rows=2)
    plain = logits(tiny_llama, ids)
    with load_personality(tiny_llama, "neutral", tiny_adapter(tiny_llama), positions="all") as personality:
        assert torch.equal(logits(tiny_llama, ids), plain)
        personality.set(["openness+", None])  # the second row goes through the tables
        mixed = logits(tiny_llama, ids)
        assert torch.equal(mixed[1], plain[1])
        assert not torch.equal(mixed[0], plain[0])
        personality.set(None)
        assert torch.equal(logits(tiny_llama, ids), plain)
    assert torch.equal(logits(tiny_llama, ids), plain)


def test_unload_puts_the_same_objects_back(tiny_llama, adapter) -> None:
    def everything() -> dict[str, object]:
        modules = dict(tiny_llama.named_modules())
        hooks = {
            name: (tuple(module._forward_hooks), tuple(module._forward_pre_hooks), tuple(module.__dict__))
            for name, module in modules.items()
        }
        return {"modules": modules, "hooks": hooks, "generate": tiny_llama.generate.__func__}

    before, keys = everything(), list(tiny_llama.state_dict())
    personality = load_personality(tiny_llama, "openness+", adapter)
    assert list(tiny_llama.state_dict()) == keys
    assert "generate" in vars(tiny_llama)
    personality.unload()
    personality.unload()
    after = everything()
    assert after == before
    assert all(after["modules"][name] is module for name, module in before["modules"].items())


def test_unload_restores_a_generate_of_the_models_own(tiny_llama, adapter) -> None:
    def own(*arguments, **keywords):
        return LlamaForCausalLM.generate(tiny_llama, *arguments, **keywords)

    tiny_llama.generate = own
    with load_personality(tiny_llama, "openness+", adapter):
        steered = tiny_llama.generate(prompt(), **GREEDY)
        assert tiny_llama.generate is not own
    assert tiny_llama.generate is own
    assert not torch.equal(steered, tiny_llama.generate(prompt(), **GREEDY))


def test_set_switches_as_often_as_one_likes(tiny_llama, adapter) -> None:
    alone = {}
    for spec in SPECS:
        with load_personality(tiny_llama, spec, adapter):
            alone[spec] = tiny_llama.generate(prompt(), **GREEDY)
    assert len({tuple(tokens[0].tolist()) for tokens in alone.values()}) == len(SPECS)
    with load_personality(tiny_llama, "neutral", adapter, slots=2) as personality:
        for spec in [*SPECS, *reversed(SPECS), {"openness": 1}, None, "OPENNESS +"]:
            personality.set(spec)
            assert torch.equal(tiny_llama.generate(prompt(), **GREEDY), alone[personality.spec])


def test_using_and_disable_hold_within_their_block(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+", adapter, positions="all") as personality:
        outer = logits(tiny_llama)
        with personality.using("neuroticism+"):
            inner = logits(tiny_llama)
            with personality.disable():
                assert personality.spec == "neutral"
                unsteered = logits(tiny_llama)
            assert personality.spec == "neuroticism+"
            assert torch.equal(logits(tiny_llama), inner)
        with pytest.raises(ZeroDivisionError), personality.using("openness-"):
            raise ZeroDivisionError
        assert personality.spec == "openness+"
        assert torch.equal(logits(tiny_llama), outer)
    assert torch.equal(logits(tiny_llama), unsteered)
    assert not torch.equal(inner, outer)


def test_using_keeps_the_slots_of_outer_blocks(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+", adapter, slots=3, positions="all") as personality:
        with personality.using("openness-"):
            outer = logits(tiny_llama)
            with pytest.raises(NptiError, match="0 slots are free"), personality.using("neuroticism+"):
                pass
            assert torch.equal(logits(tiny_llama), outer)
        with personality.using("neuroticism+"):
            pass


def test_rows_of_a_batch_have_each_their_own(tiny_llama, adapter) -> None:
    ids = prompt(rows=4)
    with load_personality(tiny_llama, None, adapter, positions="all") as personality:
        alone, tokens = [], []
        for spec in SPECS:
            personality.set(spec)
            alone.append(logits(tiny_llama, ids))
            tokens.append(tiny_llama.generate(ids, **GREEDY))
        personality.set(SPECS)
        mixed, generated = logits(tiny_llama, ids), tiny_llama.generate(ids, **GREEDY)
    for row in range(4):
        assert torch.equal(mixed[row], alone[row][row])
        assert torch.equal(generated[row], tokens[row][row])


@pytest.mark.parametrize(
    "repeated",
    [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 3}],
    ids=["beams", "beams returned", "samples"],
)
def test_beams_and_return_sequences_keep_their_rows_personality(tiny_llama, adapter, repeated: dict) -> None:
    ids, each = prompt(rows=3), repeated.get("num_return_sequences", 1)
    specs = ["openness+", None, "neuroticism-"]

    def generate() -> Tensor:
        torch.manual_seed(0)
        return tiny_llama.generate(ids, **GREEDY | repeated)

    with load_personality(tiny_llama, None, adapter) as personality:
        alone = []
        for spec in specs:
            personality.set(spec)
            alone.append(generate())
        personality.set(specs)
        mixed = generate()
    for row in range(3):
        of_row = slice(row * each, (row + 1) * each)
        assert torch.equal(mixed[of_row], alone[row][of_row])
    assert not torch.equal(mixed, alone[0])


def test_as_many_personalities_as_rows_or_one(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, ["openness+", "openness-"], adapter) as personality:
        for rows in (1, 3, 4):
            with pytest.raises(NptiError, match=f"batch has {rows} rows but 2 personalities were set; give one, or"):
                tiny_llama.generate(prompt(rows=rows), **GREEDY)
        assert tiny_llama.generate(prompt(rows=2), **GREEDY).shape == (2, 14)
        with pytest.raises(NptiError, match="An empty list names no personality"):
            personality.set([])
        with pytest.raises(NptiError, match=r"were asked for and 13 slots are free; load with slots=19 or more"):
            personality.set([f"openness+{n}" for n in range(2, 18)] + ["openness+", "openness-"])
        assert personality.spec == "openness+; openness-"


def test_strength_is_a_dial_from_nothing(tiny_llama, adapter) -> None:
    plain = logits(tiny_llama)
    with load_personality(tiny_llama, None, adapter, positions="all") as personality:
        distances = []
        for strength in (1.0, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0001):
            personality.set({"openness": strength})
            distances.append(float((logits(tiny_llama) - plain).abs().max()))
        personality.set("openness+0")
        assert torch.equal(logits(tiny_llama), plain)
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3 * distances[0]


def test_exception_leaves_the_model_usable(tiny_llama, adapter) -> None:
    class StopHereError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopHereError

    plain = logits(tiny_llama)
    with load_personality(tiny_llama, "openness+", adapter, positions="all") as personality:
        steered, tokens = logits(tiny_llama), tiny_llama.generate(prompt(), **GREEDY)
        hook = tiny_llama.model.layers[1].register_forward_hook(stop)
        for call in (lambda: logits(tiny_llama), lambda: tiny_llama.generate(prompt(), **GREEDY)):
            with pytest.raises(StopHereError):
                call()
        hook.remove()
        assert torch.equal(logits(tiny_llama), steered)
        assert torch.equal(tiny_llama.generate(prompt(), **GREEDY), tokens)
        personality.set(None)
        assert torch.equal(logits(tiny_llama), plain)
    with pytest.raises(StopHereError), load_personality(tiny_llama, "openness+", adapter):
        raise StopHereError
    assert torch.equal(logits(tiny_llama), plain)


def test_wrong_spec_changes_nothing(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+", adapter) as personality:
        for spec in ("kindness+", "openness", ["openness-", "openness+,openness-"]):
            with pytest.raises(NptiError):
                personality.set(spec)
            with pytest.raises(NptiError), personality.using(spec):
                pass
        assert personality.spec == "openness+"


def test_failed_load_leaves_the_model_as_it_was(tiny_llama, tiny_adapter) -> None:
    adapter = tiny_adapter(tiny_llama.half())
    before = {name: dict(vars(module)) for name, module in tiny_llama.named_modules()}
    plain = logits(tiny_llama)
    with pytest.raises(NptiError, match=r"do not fit torch\.float16"):  # found out when all is installed
        load_personality(tiny_llama, "openness+1000000", adapter)
    with pytest.raises(NptiError, match="there is no trait 'kindness'"):
        load_personality(tiny_llama, "kindness+", adapter)
    with pytest.raises(NptiError, match="slots is 1"):
        load_personality(tiny_llama, "openness+", adapter, slots=1)
    assert {name: vars(module) for name, module in tiny_llama.named_modules()} == before
    assert torch.equal(logits(tiny_llama), plain)


def test_loading_twice_is_refused(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+", adapter):
        for model in (tiny_llama, tiny_llama.model):
            with pytest.raises(NptiError, match="carries a personality already"):
                load_personality(model, "openness-", adapter)
    load_personality(tiny_llama, "openness-", adapter).unload()


def test_unloaded_personality_refuses_to_do_nothing(tiny_llama, adapter) -> None:
    personality = load_personality(tiny_llama, "openness+", adapter)
    personality.unload()
    assert not personality.loaded
    assert repr(personality) == "Personality(unloaded)"
    for call in (lambda: personality.set("openness-"), personality.__enter__, personality.disable().__enter__):
        with pytest.raises(NptiError, match="was unloaded, so nothing would be steered; load it again"):
            call()


def test_another_models_adapter_is_refused(tiny_llama, adapter) -> None:
    wider = replace(adapter.base_model.neurons_per_layer[0], dense=64)
    other = replace(adapter.base_model, id="org/other", neurons_per_layer=(wider,) * 3)
    with pytest.raises(NptiError, match=r"made for org/other .* does not fit llama"):
        load_personality(tiny_llama, "openness+", replace(adapter, base_model=other))
    assert not any(isinstance(module, SteeredActivation) for module in tiny_llama.modules())


def test_another_fine_tune_is_a_warning_that_names_both(tiny_llama, adapter) -> None:
    tiny_llama.config.name_or_path = "org/tuned"
    original = replace(adapter.base_model, id="org/original")
    tiny_llama.model.layers[0].mlp.gate_proj.weight.data += 1
    with pytest.warns(UserWarning, match=r"made for org/original and this model, org/tuned, .* other weights"):
        load_personality(tiny_llama, "openness+", replace(adapter, base_model=original)).unload()


def test_float16_does_not_look_like_another_fine_tune(tiny_llama, tiny_adapter) -> None:
    """It rounds small weights otherwise than bfloat16, so the same checkpoint would have another fingerprint."""
    tiny_llama.model.layers[0].mlp.gate_proj.weight.data[0, :3] = torch.tensor([1e-7, 3e-8, 2.3e-6])
    adapter = tiny_adapter(tiny_llama.to(torch.bfloat16))
    assert adapter.base_model.fingerprint is not None
    tiny_llama.half()
    assert tiny_adapter(tiny_llama).base_model.fingerprint is None
    load_personality(tiny_llama, "openness+", adapter).unload()  # a warning would be an error


def test_adapter_is_found_for_the_base_model(tiny_llama, adapter, caplog) -> None:
    folder = cache_folder() / "llama"
    adapter.save_pretrained(folder)
    with caplog.at_level(logging.INFO, "npti_export"), load_personality(tiny_llama, "openness+") as found:
        assert found.adapter.traits.keys() == adapter.traits.keys()
    assert str(folder) in caplog.text
    with load_personality(tiny_llama, "openness+", str(folder)) as named:
        assert str(named.adapter) == str(adapter)


def test_threads_get_what_they_would_get_alone(tiny_llama, adapter) -> None:
    specs = [*SPECS, "openness+2", "openness-2", "neuroticism+", "openness+0.2"]
    with load_personality(tiny_llama, "openness+", adapter) as personality:
        alone = []
        for number, spec in enumerate(specs):
            personality.set(spec)
            alone.append(tiny_llama.generate(prompt(seed=number, length=4 + number), **GREEDY))
        personality.set("openness-")
        together = Barrier(len(specs))

        def work(number: int) -> bool:
            together.wait()
            for _ in range(3):
                with personality.using(specs[number]):
                    tokens = tiny_llama.generate(prompt(seed=number, length=4 + number), **GREEDY)
                if not torch.equal(tokens, alone[number]):
                    return False
            return personality.spec == "openness-"

        with ThreadPoolExecutor(len(specs)) as pool:
            assert all(pool.map(work, range(len(specs))))


def test_tasks_of_one_thread_do_not_disturb_each_other(tiny_llama, adapter) -> None:
    async def talk(spec: str) -> tuple[str, Tensor]:
        with personality.using(spec):
            await asyncio.sleep(0)
            steered = logits(tiny_llama)
            await asyncio.sleep(0)
            assert torch.equal(logits(tiny_llama), steered)
            return personality.spec, steered

    async def talk_all() -> list[tuple[str, Tensor]]:
        return await asyncio.gather(*map(talk, SPECS))

    with load_personality(tiny_llama, None, adapter, positions="all") as personality:
        said = asyncio.run(talk_all())
        for spec, (named, steered) in zip(SPECS, said, strict=True):
            personality.set(spec)
            assert named == personality.spec
            assert torch.equal(logits(tiny_llama), steered)


def test_context_that_outlives_its_block_is_refused(tiny_llama, adapter) -> None:
    """As a task that a block starts and does not wait for: another personality may stand in its slot by then."""
    with load_personality(tiny_llama, None, adapter, slots=2, positions="all") as personality:
        with personality.using("openness+"):
            task = contextvars.copy_context()
            assert torch.equal(task.run(logits, tiny_llama), logits(tiny_llama))
        with personality.disable():
            neutral = contextvars.copy_context()
        with personality.using("neuroticism+"):
            steered = logits(tiny_llama)
            with pytest.raises(NptiError, match=r"block of using\('openness\+'\) .* has ended"):
                task.run(logits, tiny_llama)
        with pytest.raises(NptiError, match="has ended"):
            task.run(setattr, personality, "strength", 0.5)
        assert torch.equal(neutral.run(logits, tiny_llama), logits(tiny_llama))
        assert not torch.equal(steered, logits(tiny_llama))


def test_block_left_in_another_context_is_an_error_and_frees_its_slot(tiny_llama, adapter) -> None:
    """As where a server runs a generator step by step, each in a context of its own."""
    with load_personality(tiny_llama, None, adapter, slots=2) as personality:
        block = personality.using("openness+")
        contextvars.copy_context().run(block.__enter__)
        with pytest.raises(NptiError, match="entered in one thread or task and left in another, where it did not hold"):
            block.__exit__(None, None, None)
        with personality.using("neuroticism+"):
            pass


def test_saved_weights_are_the_base_models(tiny_llama, adapter, tmp_path) -> None:
    tiny_llama.save_pretrained(tmp_path / "before")
    with load_personality(tiny_llama, "openness+", adapter):
        tiny_llama.save_pretrained(tmp_path / "steered")
    before, steered = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "steered"))
    assert before.keys() == steered.keys()
    assert all(torch.equal(before[key], steered[key]) for key in before)
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path / "steered")), logits(tiny_llama))


def test_copying_a_steered_model_is_refused(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+", adapter):
        for duplicate in (copy.deepcopy, pickle.dumps):
            with pytest.raises(NptiError, match=r"cannot be copied or pickled; \.unload\(\) it first"):
                duplicate(tiny_llama)
    assert torch.equal(logits(copy.deepcopy(tiny_llama)), logits(tiny_llama))


def test_loading_draws_no_random_number(tiny_llama, adapter) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_personality(tiny_llama, "openness+", adapter).unload()
    assert torch.equal(torch.rand(1), expected)


def test_hundreds_of_personalities_cost_their_tables_and_nothing_else(tiny_llama, adapter) -> None:
    specs, ids = [f"openness{'+-'[n % 2]}{n / 100}" for n in range(1, 301)], prompt(rows=300)
    with load_personality(tiny_llama, None, adapter, slots=301, positions="all") as personality:
        assert personality.memory() == 2 * 3 * 301 * 48 * 4  # cap and shift, layers, slots, neurons, bytes
        personality.set(specs)
        mixed = logits(tiny_llama, ids)
        assert personality.memory() == 2 * 3 * 301 * 48 * 4
        for row in (0, 149, 299):
            personality.set(specs[row])
            assert torch.equal(mixed[row], logits(tiny_llama, ids)[row])


def test_switching_to_a_personality_in_a_slot_writes_no_table(tiny_llama, adapter) -> None:
    """How long that takes (40 us) is measured by eval/speed/steering.py."""
    spec = "openness+,neuroticism-0.5"
    with load_personality(tiny_llama, spec, adapter, positions="all") as personality:
        steered = logits(tiny_llama)
        personality.set("openness-")
        tables = [layer.mlp.act_fn.tables for layer in tiny_llama.model.layers]
        written = [(table.cap._version, table.shift._version) for table in tables]
        for _ in range(3):
            personality.set("openness-")
            personality.set(spec)
        assert [(table.cap._version, table.shift._version) for table in tables] == written
        assert torch.equal(logits(tiny_llama), steered)
        personality.set("openness+")  # which is in no slot yet
        assert all(
            table.cap._version > cap or table.shift._version > shift
            for table, (cap, shift) in zip(tables, written, strict=True)
        )


def test_describe_and_memory_and_the_log_say_what_is_steered_where(tiny_llama, adapter, caplog) -> None:
    tables = "at model.layers.0.mlp.act_fn to model.layers.2.mlp.act_fn"
    caplog.set_level(logging.INFO, "npti_export")
    with load_personality(tiny_llama, "openness+,neuroticism-0.5", adapter) as personality:
        assert personality.memory() == 2 * 3 * 16 * 48 * 4  # cap and shift, layers, slots, neurons, bytes
        assert personality.describe() == (
            "openness+,neuroticism-0.5 on llama, positions generated\n"
            "  openness+: 43 neurons in layers 0 to 2, npti, gamma 1.4\n"
            "  neuroticism-0.5: 43 neurons in layers 0 to 2, npti, gamma 0.7\n"
            f"  tables: 16 slots, 18432 bytes, {tables}"
        )
        assert repr(personality) == "Personality(openness+,neuroticism-0.5 on llama)"
        assert caplog.messages == [personality.describe()]
    assert (personality.memory(), personality.describe()) == (0, "Personality(unloaded): the model is as it was")
    dense = with_dense_parts(adapter, 32, layers=[0, 2])
    with load_personality(tiny_llama, ["openness-", None, "openness-"], dense, slots=4) as personality:
        assert personality.memory() == 2 * 3 * 4 * 48 * 4 + 2 * 4 * 32 * 4
        personality.strength = 0.5
        assert personality.describe() == (
            "openness-0.5; neutral; openness-0.5 on llama, positions generated\n"
            "  openness-0.5: 43 neurons in layers 0 to 2, npti, gamma 0.7, and a vector added behind layers 0, 2\n"
            f"  tables: 4 slots, 5632 bytes, {tables}, model.layers.0.mlp.down_proj, model.layers.2.mlp.down_proj"
        )
