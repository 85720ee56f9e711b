"""Which tokens are steered: what `generate` was given decides, in every way there is of calling it."""

from __future__ import annotations

import pytest
import torch
from equation_4 import activations_of, steered_by_hooks
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.errors import NptiError
from npti_export.steering.positions import (
    GenerateCall,
    Positions,
    check_rows,
    first_steered,
    forward_span,
    generate_call_of,
    token_slots,
)
from npti_export.traits import Pole

SPEC = "openness+"
NEW = 8
GREEDY = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
    "pad_token_id": 0,
}


@pytest.fixture
def adapter(tiny_llama: LlamaForCausalLM, tiny_adapter) -> PersonalityAdapter:
    return tiny_adapter(tiny_llama)


def prompt(rows: int = 1, length: int = 6, seed: int = 1) -> Tensor:
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_hand(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, ids: Tensor, cache: DynamicCache | None = None
) -> tuple[Tensor, list[Tensor], DynamicCache]:
    """Greedy decoding in a loop of its own: the prompt plain, every token after it under equation 4's hooks."""
    cache = DynamicCache() if cache is None else cache
    activations = activations_of(model)

    def forward(new: Tensor) -> Tensor:
        length = cache.get_seq_length() + new.shape[1]
        places = torch.arange(cache.get_seq_length(), length).expand(len(new), -1)
        mask = torch.ones(len(new), length, dtype=torch.int64)
        # The same arguments as `generate` gives, so that the same kernels run on the same shapes.
        given = {"attention_mask": mask, "position_ids": places, "past_key_values": cache, "logits_to_keep": 1}
        return model(new.clone(), **given).logits[:, -1]

    logits = [forward(ids[:, cache.get_seq_length() :])]
    for _ in range(NEW - 1):
        token = logits[-1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], 1)
        with steered_by_hooks(activations, adapter, "openness", Pole.HIGH):
            logits.append(forward(token))
    return torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1), logits, cache


def same(a: list[Tensor] | tuple[Tensor, ...], b: list[Tensor] | tuple[Tensor, ...]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_generated_is_the_default_and_equals_a_loop_by_hand(tiny_llama, adapter) -> None:
    ids = prompt(rows=3)
    tokens, logits, cache = by_hand(tiny_llama, adapter, ids)
    plain = tiny_llama.generate(ids, **GREEDY)
    with load_personality(tiny_llama, SPEC, adapter):
        steered = tiny_llama.generate(ids, **GREEDY)
    assert torch.equal(steered.sequences, tokens)
    assert same(steered.logits, logits)
    assert not torch.equal(steered.sequences, plain.sequences)
    assert torch.equal(steered.logits[0], plain.logits[0])  # the first generated token is unsteered
    for mine, hooked, untouched in zip(
        steered.past_key_values.layers, cache.layers, plain.past_key_values.layers, strict=True
    ):
        assert torch.equal(mine.keys, hooked.keys)
        assert torch.equal(mine.values[:, :, :6], untouched.values[:, :, :6])  # and so is the prompt's cache
        assert torch.equal(mine.keys[:, :, :6], untouched.keys[:, :, :6])
    assert not torch.equal(mine.keys[:, :, 6:], untouched.keys[:, :, 6:])


def test_all_steers_the_prompt_too(tiny_llama, adapter) -> None:
    ids = prompt()
    with steered_by_hooks(activations_of(tiny_llama), adapter, "openness", Pole.HIGH):
        hooked = tiny_llama.generate(ids, **GREEDY)
    with load_personality(tiny_llama, SPEC, adapter, positions="all"):
        steered = tiny_llama.generate(ids, **GREEDY)
    assert same(steered.logits, hooked.logits)


def test_last_prompt_steers_the_first_generated_token(tiny_llama, adapter) -> None:
    ids = prompt(rows=2)
    with torch.no_grad():
        cache = DynamicCache()
        tiny_llama(ids[:, :-1], past_key_values=cache)
        with steered_by_hooks(activations_of(tiny_llama), adapter, "openness", Pole.HIGH):
            first = tiny_llama(ids[:, -1:], past_key_values=cache).logits[:, -1]
    plain = tiny_llama.generate(ids, **GREEDY)
    with load_personality(tiny_llama, SPEC, adapter, positions="last_prompt+generated"):
        steered = tiny_llama.generate(ids, **GREEDY)
    torch.testing.assert_close(steered.logits[0], first)
    assert not torch.equal(steered.logits[0], plain.logits[0])
    for mine, untouched in zip(steered.past_key_values.layers, plain.past_key_values.layers, strict=True):
        assert torch.equal(mine.keys[:, :, :5], untouched.keys[:, :, :5])


def test_the_adapters_own_positions_hold_unless_overridden(tiny_llama, tiny_adapter) -> None:
    everywhere = tiny_adapter(tiny_llama, positions="all")
    plain = tiny_llama.generate(prompt(), **GREEDY)
    with load_personality(tiny_llama, SPEC, everywhere):
        assert not torch.equal(tiny_llama.generate(prompt(), **GREEDY).logits[0], plain.logits[0])
    with load_personality(tiny_llama, SPEC, everywhere, positions="generated"):
        assert torch.equal(tiny_llama.generate(prompt(), **GREEDY).logits[0], plain.logits[0])


@pytest.mark.parametrize(
    "ways",
    [
        {"use_cache": False},
        {"prefill_chunk_size": 1},
        {"prefill_chunk_size": 4},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=lambda ways: next(iter(ways)),
)
@pytest.mark.parametrize("positions", ["generated", "last_prompt+generated", "all"])
def test_same_tokens_however_the_forwards_are_cut(tiny_llama, adapter, ways: dict, positions: str) -> None:
    ids = prompt(length=9)
    with load_personality(tiny_llama, SPEC, adapter, positions=positions):
        usual = tiny_llama.generate(ids, **GREEDY)
        otherwise = tiny_llama.generate(ids, **GREEDY, **ways)
    assert torch.equal(otherwise.sequences, usual.sequences)
    for a, b in zip(otherwise.logits, usual.logits, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_every_way_of_handing_over_the_prompt(tiny_llama, adapter) -> None:
    ids = prompt(rows=2)
    embedded = tiny_llama.get_input_embeddings()(ids).detach()
    with load_personality(tiny_llama, SPEC, adapter):
        usual = tiny_llama.generate(ids, **GREEDY)
        for ways in ({"inputs": ids}, {"input_ids": ids}, {"inputs_embeds": embedded}):
            assert same(tiny_llama.generate(**ways, **GREEDY).logits, usual.logits)
        both = tiny_llama.generate(input_ids=ids[:, :0], inputs_embeds=embedded, **GREEDY)
        assert same(both.logits, usual.logits)


def test_no_prompt_at_all_is_a_prompt_of_one_token(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, SPEC, adapter):
        given = tiny_llama.generate(torch.tensor([[1]]), **GREEDY)
        assert same(tiny_llama.generate(**GREEDY).logits, given.logits)


def test_left_padding(tiny_llama, adapter) -> None:
    long, short = prompt(length=7), prompt(length=4, seed=2)
    ids = torch.cat([long, torch.cat([torch.zeros(1, 3, dtype=torch.int64), short], 1)])
    mask = (ids != 0).long()
    with load_personality(tiny_llama, SPEC, adapter):
        batch = tiny_llama.generate(ids, attention_mask=mask, **GREEDY)
        alone = [tiny_llama.generate(row, **GREEDY) for row in (long, short)]
    for row, one in enumerate(alone):
        assert torch.equal(batch.sequences[row, -NEW:], one.sequences[0, -NEW:])
        for together, single in zip(batch.logits, one.logits, strict=True):
            torch.testing.assert_close(together[row], single[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("only_new", [False, True])
def test_chat_turns_with_a_kept_cache(tiny_llama, adapter, only_new: bool) -> None:
    # What was generated stays in the cache as it was; what is fed in the second turn is prompt.
    first, _, cache = by_hand(tiny_llama, adapter, prompt())
    conversation = torch.cat([first, prompt(length=5, seed=2)], 1)
    tokens, logits, _ = by_hand(tiny_llama, adapter, conversation, cache)
    with load_personality(tiny_llama, SPEC, adapter):
        kept = tiny_llama.generate(prompt(), **GREEDY).past_key_values
        given = conversation[:, kept.get_seq_length() :] if only_new else conversation
        second = tiny_llama.generate(
            given, attention_mask=torch.ones_like(conversation), past_key_values=kept, **GREEDY
        )
    assert torch.equal(second.sequences[:, -NEW:], tokens[:, -NEW:])
    assert same(second.logits, logits)


def test_earlier_answers_fed_again_are_prompt(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, SPEC, adapter):
        conversation = tiny_llama.generate(prompt(), **GREEDY).sequences
        second = tiny_llama.generate(conversation, **GREEDY)
    assert same(second.logits, by_hand(tiny_llama, adapter, conversation)[1])


def test_plain_forward_is_not_steered_under_generated_and_says_so_once(tiny_llama, adapter) -> None:
    ids = prompt()
    plain = tiny_llama(ids).logits
    with load_personality(tiny_llama, SPEC, adapter):
        with pytest.warns(UserWarning, match="no generated positions, so nothing is steered"):
            assert torch.equal(tiny_llama(ids).logits, plain)
        assert torch.equal(tiny_llama(ids).logits, plain)  # a second warning would be an error
        tiny_llama.generate(ids, **GREEDY)


def test_generate_does_not_warn(tiny_llama, adapter, recwarn) -> None:
    with load_personality(tiny_llama, SPEC, adapter):
        tiny_llama.generate(prompt(), **GREEDY)
    assert not [warning for warning in recwarn if "steered" in str(warning.message)]


def test_unknown_positions_are_refused_and_the_model_left_alone(tiny_llama, adapter) -> None:
    before = list(tiny_llama.modules())
    with pytest.raises(NptiError, match="positions is 'everywhere'; expected one of generated, last_prompt"):
        load_personality(tiny_llama, SPEC, adapter, positions="everywhere")
    with pytest.raises(NptiError, match=r"'answer'.* use 'generated'"):
        load_personality(tiny_llama, SPEC, adapter, positions="answer")
    assert list(tiny_llama.modules()) == before


@pytest.mark.parametrize(
    ("arguments", "keywords", "expected"),
    [
        ((torch.zeros(2, 5),), {}, GenerateCall(2, 5)),
        ((), {"inputs": torch.zeros(2, 5)}, GenerateCall(2, 5)),
        ((), {"input_ids": torch.zeros(3, 4)}, GenerateCall(3, 4)),
        ((None,), {"inputs_embeds": torch.zeros(2, 7, 8)}, GenerateCall(2, 7)),
        ((), {"input_ids": torch.zeros(2, 1), "inputs_embeds": torch.zeros(2, 7, 8)}, GenerateCall(2, 7)),
        ((), {}, GenerateCall(1, 1)),
        ((["a prompt"],), {}, None),
    ],
)
def test_generate_call(arguments, keywords, expected) -> None:
    assert generate_call_of(arguments, keywords) == expected


def test_first_steered() -> None:
    call = GenerateCall(1, 5)
    assert [first_steered(positions, call) for positions in Positions] == [5, 4, 0]
    assert [first_steered(positions, None) for positions in Positions] == [None, None, 0]


def test_token_slots() -> None:
    def slots(row_slots, **span):
        found = token_slots(row_slots, device="cpu", **span)
        return found.tolist() if isinstance(found, Tensor) else found

    prefill = {"rows": 2, "first": 0, "length": 3, "start": 2}
    step = {"rows": 2, "first": 3, "length": 1, "start": 2}
    assert slots([4], **step) == 4
    assert slots([4, 5], **step) == [[4], [5]]
    assert slots([4, 0], **prefill) == [[0, 0, 4], [0, 0, 0]]
    assert slots([4], **prefill) == [[0, 0, 4]]
    assert slots([4, 5], **(step | {"rows": 4})) == [[4], [4], [5], [5]]
    assert slots([0, 0], **step) is None
    assert slots([4], **(prefill | {"start": 3})) is None
    assert slots([4], **(prefill | {"start": None})) is None


def test_rows_that_cannot_be_told_apart_are_refused() -> None:
    check_rows(1, 5, None)
    check_rows(2, 6, GenerateCall(2, 4))  # three beams a row
    for personalities, rows, call in (
        (2, 4, None),
        (3, 2, None),
        (2, 4, GenerateCall(4, 3)),
        (2, 3, GenerateCall(2, 3)),
    ):
        with pytest.raises(NptiError, match=f"but {personalities} personalities were set; give one, or one a row"):
            check_rows(personalities, rows, call)


def test_forward_without_tokens_is_refused() -> None:
    assert forward_span({"input_ids": None, "inputs_embeds": torch.zeros(2, 3, 8)}) == (2, 0, 3)
    with pytest.raises(NptiError, match="neither input_ids nor inputs_embeds"):
        forward_span({"pixel_values": torch.zeros(1)})
