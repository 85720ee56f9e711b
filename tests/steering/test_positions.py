"""Which tokens are steered: what `generate` was given decides, in every way there is of calling it."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from equation_4 import activations_of, steered_by_hooks
from one_by_one import logits_one_by_one
from tiny_models import tiny
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.errors import NptiError
from npti_export.steering.positions import (
    GenerateCall,
    Positions,
    check_place,
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
        for ways in ({"inputs": ids}, {"inputs": None, "input_ids": ids}, {"inputs_embeds": embedded}):
            assert same(tiny_llama.generate(**ways, **GREEDY).logits, usual.logits)
        both = tiny_llama.generate(input_ids=ids[:, :0], inputs_embeds=embedded, **GREEDY)
        assert same(both.logits, usual.logits)


def check_one_by_one(model, adapter, sequence: Tensor, length: int, logits: Tensor) -> None:
    """The logits of a row's steps [steps, vocabulary] are those of its tokens fed one by one, the prompt's plain."""
    steered = [at >= length for at in range(len(sequence))]
    expected = logits_one_by_one(model, adapter, sequence, steered)[length - 1 : -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("returned", [1, 3])
def test_beams_score_as_their_tokens_fed_one_by_one(tiny_llama, adapter, returned: int) -> None:
    ids = prompt(rows=3)
    search = GREEDY | {"num_beams": 4, "num_return_sequences": returned, "length_penalty": 0.0, "output_scores": True}
    with load_personality(tiny_llama, SPEC, adapter):
        output = tiny_llama.generate(ids, **search)
    assert len(output.sequences) == 3 * returned
    for sequence, score in zip(output.sequences, output.sequences_scores, strict=True):
        steered = [at >= 6 for at in range(len(sequence))]
        logits = logits_one_by_one(tiny_llama, adapter, sequence, steered)[5:-1]
        chosen = logits.log_softmax(-1).gather(1, sequence[6:, None])
        torch.testing.assert_close(chosen.sum(), score, rtol=1e-3, atol=1e-3)


def test_samples_of_padded_rows_are_as_their_tokens_fed_one_by_one(tiny_llama, adapter) -> None:
    ids = prompt(rows=3, length=7)
    ids[0, :3], ids[2, :5] = 0, 0
    sampled = GREEDY | {"do_sample": True, "num_return_sequences": 3, "attention_mask": (ids != 0).long()}
    torch.manual_seed(0)
    with load_personality(tiny_llama, SPEC, adapter):
        output = tiny_llama.generate(ids, **sampled)
    assert len({tuple(sequence.tolist()) for sequence in output.sequences}) == 9
    for row, sequence in enumerate(output.sequences):
        given = sequence[int((ids[row // 3] == 0).sum()) :]
        check_one_by_one(tiny_llama, adapter, given, len(given) - NEW, torch.stack([at[row] for at in output.logits]))


@pytest.mark.parametrize("draft", ["steered too", "unsteered", "first layers", "looked up"])
def test_drafts_are_verified_by_the_steered_model(tiny_llama, adapter, draft: str) -> None:
    ids = prompt(length=5).repeat(1, 2)
    assistant = copy.deepcopy(tiny_llama)
    ways: dict[str, object] = {"assistant_model": assistant}
    if draft == "first layers":
        ways = {"assistant_early_exit": 2}
    if draft == "looked up":
        ways = {"prompt_lookup_num_tokens": 3}
    steered_assistant = load_personality(assistant, SPEC, adapter) if draft == "steered too" else nullcontext()
    with load_personality(tiny_llama, SPEC, adapter), steered_assistant:
        usual = tiny_llama.generate(ids, **GREEDY)
        drafted = tiny_llama.generate(ids, **GREEDY, **ways)
    assert torch.equal(drafted.sequences, usual.sequences)
    check_one_by_one(tiny_llama, adapter, usual.sequences[0], 10, torch.cat(usual.logits))
    check_one_by_one(tiny_llama, adapter, drafted.sequences[0], 10, torch.cat(drafted.logits)[:NEW])


@pytest.mark.parametrize("ways", [{}, {"prefill_chunk_size": 3}, {"cache_implementation": "static"}], ids=str)
def test_sliding_window_shorter_than_the_prompt(tiny_adapter, ways: dict) -> None:
    model = tiny("Mistral", sliding_window=4, eos_token_id=None, initializer_range=0.3)
    adapter, ids = tiny_adapter(model), prompt(length=11)
    with load_personality(model, SPEC, adapter):
        output = model.generate(ids, **GREEDY, **ways)
    check_one_by_one(model, adapter, output.sequences[0], 11, torch.cat(output.logits))


def test_three_chat_turns_of_two_rows_with_a_kept_cache(tiny_llama, adapter) -> None:
    turns, conversation, cache, moved = [prompt(2, 6), prompt(2, 3, 2), prompt(2, 4, 3)], None, None, []
    with load_personality(tiny_llama, SPEC, adapter):
        outputs = []
        for turn in turns:
            conversation = turn if conversation is None else torch.cat([conversation, turn], 1)
            moved += [False] * (conversation.shape[1] - len(moved))
            mask = torch.ones_like(conversation)  # or token 0, if it was generated, would be taken for padding
            output = tiny_llama.generate(conversation, attention_mask=mask, past_key_values=cache, **GREEDY)
            outputs.append((conversation.shape[1], torch.stack(output.logits, 1)))
            cache, conversation = output.past_key_values, output.sequences
            moved += [True] * (NEW - 1)  # the last token is fed as a part of the next turn
    moved += [False]
    for row in range(2):
        expected = logits_one_by_one(tiny_llama, adapter, conversation[row], moved)
        for length, logits in outputs:
            torch.testing.assert_close(logits[row], expected[length - 1 :][:NEW], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("negative", [None, 3, 12], ids=["none", "shorter", "longer"])
def test_guidance_runs_the_model_on_a_sequence_of_its_own(tiny_llama, adapter, negative: int | None) -> None:
    """Which of its tokens were generated is not to be told by their places; where all are steered it need not be."""
    against = None if negative is None else prompt(length=negative, seed=3)
    ways = GREEDY | {"guidance_scale": 1.5, "negative_prompt_ids": against}
    refused = pytest.raises(NptiError, match="cannot be told which tokens were generated")
    with load_personality(tiny_llama, SPEC, adapter), refused:
        tiny_llama.generate(prompt(), **ways)
    with steered_by_hooks(activations_of(tiny_llama), adapter, "openness", Pole.HIGH):
        hooked = tiny_llama.generate(prompt(), **ways)
    with load_personality(tiny_llama, SPEC, adapter, positions="all"):
        assert same(tiny_llama.generate(prompt(), **ways).logits, hooked.logits)


def test_decoder_that_takes_its_cache_unnamed(tiny_llama, adapter) -> None:
    class Unnamed(type(tiny_llama.model)):
        def forward(self, input_ids=None, **others: object):
            return super().forward(input_ids, **others)

    with load_personality(tiny_llama, SPEC, adapter):
        expected = tiny_llama.generate(prompt(), **GREEDY)
    tiny_llama.model.__class__ = Unnamed
    with load_personality(tiny_llama, SPEC, adapter):
        assert same(tiny_llama.generate(prompt(), **GREEDY).logits, expected.logits)


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
    with pytest.raises(NptiError, match=r"'answer' needs the marks .* or with positions='generated'"):
        load_personality(tiny_llama, SPEC, adapter, positions="answer")
    assert list(tiny_llama.modules()) == before


@pytest.mark.parametrize(
    ("arguments", "keywords", "expected"),
    [
        ((torch.zeros(2, 5),), {}, GenerateCall(2, 5)),
        ((), {"inputs": torch.zeros(2, 5)}, GenerateCall(2, 5)),
        ((), {"input_ids": torch.zeros(3, 4)}, GenerateCall(3, 4)),
        ((None,), {"input_ids": torch.zeros(3, 4)}, GenerateCall(3, 4)),
        ((), {"inputs": None, "input_ids": torch.zeros(3, 4)}, GenerateCall(3, 4)),
        ((None,), {"inputs_embeds": torch.zeros(2, 7, 8)}, GenerateCall(2, 7, 7)),
        ((), {"input_ids": torch.zeros(2, 1), "inputs_embeds": torch.zeros(2, 7, 8)}, GenerateCall(2, 7, 6)),
        ((), {}, GenerateCall(1, 1)),
        ((["a prompt"],), {}, None),
    ],
)
def test_generate_call(arguments, keywords, expected) -> None:
    assert generate_call_of(arguments, keywords) == expected


def test_first_steered() -> None:
    call = GenerateCall(1, 5)
    assert [first_steered(positions, call) for positions in Positions] == [5, 4, 5, 0]
    assert [first_steered(positions, None) for positions in Positions] == [None, None, None, 0]


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


def test_forwards_that_end_elsewhere_than_generate_are_refused() -> None:
    call, ids = GenerateCall(2, 6), torch.zeros(2, 9)
    check_place(ids, call, first=8, length=1)
    check_place(ids, call, first=0, length=9)
    check_place(ids[:, :4], call, first=4, length=2)  # the prompt's second piece
    check_place(ids[:, :3], GenerateCall(2, 6, unseen=6), first=8, length=1)  # behind embeddings
    for first, length in ((0, 1), (0, 6), (6, 2), (9, 1), (0, 12)):
        with pytest.raises(NptiError, match=f"ends at token {first + length} of .* generate is at token 9"):
            check_place(ids, call, first, length)


def test_forward_without_tokens_is_refused() -> None:
    assert forward_span({"input_ids": None, "inputs_embeds": torch.zeros(2, 3, 8)}) == (2, 0, 3)
    with pytest.raises(NptiError, match="neither input_ids nor inputs_embeds"):
        forward_span({"pixel_values": torch.zeros(1)})
