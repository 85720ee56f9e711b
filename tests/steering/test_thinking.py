"""Positions ``answer``: a reasoning model's thinking is left alone, row by row, however the tokens are generated."""

from __future__ import annotations

import pytest
import torch
from chat_models import SYSTEM_TEMPLATE, tiny_tokenizer
from one_by_one import logits_one_by_one
from torch import Tensor
from transformers import LlamaForCausalLM, LogitsProcessor

from npti_export import PersonalityAdapter, load_personality
from npti_export.errors import NptiError
from npti_export.steering.thinking import Thinking

SPEC = "openness+"
NEW = 8
BEGIN, END = 62, 63
THINKING = Thinking(BEGIN, END)
GREEDY = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
    "pad_token_id": 0,
}
PROMPTS = torch.tensor(
    [
        [5, 9, 33, 20, 7, BEGIN],  # the template opened the thinking
        [5, 9, 33, 21, 8, 4],  # the model opens it
        [5, 9, 33, 21, 8, 6],  # the model does not think
        [5, 9, BEGIN, END, 8, 4],  # the template closed it
        [5, BEGIN, 9, END, 8, 4],  # an earlier turn's; the model opens it again
    ]
)
WRITTEN = [{2: END}, {0: BEGIN, 4: END}, {}, {}, {0: BEGIN, 1: END, 3: BEGIN, 5: END}]
"""What each row is made to generate, by step."""
STEERED = [[2, 3, 4, 5, 6, 7], [4, 5, 6, 7], list(range(8)), list(range(8)), [1, 2, 5, 6, 7]]
"""Which of the generated tokens belong to the answer."""


class Written(LogitsProcessor):
    """Makes rows generate the marks where a test wants them, and nowhere else.

    Args:
        rows: For each row the tokens by step.
        prompt: Length of the prompt.
    """

    def __init__(self, rows: list[dict[int, int]], prompt: int) -> None:
        self.rows = rows
        self.prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, [BEGIN, END]] = -torch.inf
        step = input_ids.shape[1] - self.prompt
        for row, written in enumerate(self.rows):
            if step in written:
                scores[row] = -torch.inf
                scores[row, written[step]] = 0.0
        return scores


@pytest.fixture
def adapter(tiny_llama: LlamaForCausalLM, tiny_adapter) -> PersonalityAdapter:
    return tiny_adapter(tiny_llama)


def expected_logits(model, adapter, sequence: Tensor, prompt: int, steered: list[int]) -> Tensor:
    """Behind the prompt and behind every generated token but the last, which is never fed."""
    moved = [at - prompt in steered for at in range(len(sequence))]
    return logits_one_by_one(model, adapter, sequence, moved)[prompt - 1 : -1]


def check(model, adapter, row_ids: Tensor, prompt: int, steered: list[int], logits: Tensor) -> None:
    """A row's logits, [steps, vocabulary], against its tokens fed one by one."""
    expected = expected_logits(model, adapter, row_ids, prompt, steered)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    everywhere = expected_logits(model, adapter, row_ids, prompt, list(range(NEW)))
    if steered != list(range(NEW)):
        assert not torch.allclose(logits, everywhere, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "ways",
    [{}, {"use_cache": False}, {"prefill_chunk_size": 4}, {"cache_implementation": "static"}],
    ids=["usual", "no cache", "chunks", "static"],
)
def test_each_row_is_steered_from_the_end_of_its_thinking(tiny_llama, adapter, ways: dict) -> None:
    written = [Written(WRITTEN, PROMPTS.shape[1])]
    with load_personality(tiny_llama, SPEC, adapter, positions="answer", thinking=THINKING):
        output = tiny_llama.generate(PROMPTS, **GREEDY, **ways, logits_processor=written)
    for row, steered in enumerate(STEERED):
        logits = torch.stack([step[row] for step in output.logits])
        check(tiny_llama, adapter, output.sequences[row], PROMPTS.shape[1], steered, logits)


def test_rows_of_different_personalities_and_lengths(tiny_llama, adapter) -> None:
    padded = torch.cat([torch.zeros(5, 3, dtype=torch.int64), PROMPTS], 1)
    padded[2, 3:6], padded[2, 6:] = 0, torch.tensor([21, 8, 6])
    mask = (padded != 0).long()
    written = [Written(WRITTEN, padded.shape[1])]
    specs = [SPEC, None, SPEC, SPEC, None]
    with load_personality(tiny_llama, specs, adapter, positions="answer", thinking=THINKING):
        output = tiny_llama.generate(padded, attention_mask=mask, **GREEDY, logits_processor=written)
    for row, spec in enumerate(specs):
        ids = output.sequences[row][padded[row].eq(0).sum() :]
        moved = STEERED[row] if spec else []
        logits = torch.stack([step[row] for step in output.logits])
        expected = expected_logits(tiny_llama, adapter, ids, len(ids) - NEW, moved)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


FAVOUR = 2.0


class Favoured(LogitsProcessor):
    """Adds to the log-probability of the mark that ends, so that beams hold it at different places."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, END] += FAVOUR
        return scores


def steered_of(ids: list[int], prompt: int) -> list[int]:
    """Which generated tokens are steered, told by walking along them."""
    thinking, steered = False, []
    for at, token in enumerate(ids):
        thinking = token == BEGIN or (thinking and token != END)
        if at >= prompt and not thinking:
            steered.append(at - prompt)
    return steered


def test_beams_keep_their_own_thinking(tiny_llama, adapter) -> None:
    prompt, beams = PROMPTS.shape[1], 8
    rows = PROMPTS[:1].repeat(6, 1)
    rows[:, 0] = torch.arange(10, 16)
    searched = GREEDY | {"num_beams": beams, "num_return_sequences": beams, "length_penalty": 0.0}
    with load_personality(tiny_llama, SPEC, adapter, positions="answer", thinking=THINKING):
        output = tiny_llama.generate(rows, **searched, output_scores=True, logits_processor=[Favoured()])
    starts: list[set[tuple[int, ...]]] = [set() for _ in rows]
    for at, (ids, score) in enumerate(zip(output.sequences, output.sequences_scores, strict=True)):
        steered = steered_of(ids.tolist(), prompt)
        starts[at // beams].add(tuple(steered))
        logits = expected_logits(tiny_llama, adapter, ids, prompt, steered)
        chosen = logits.log_softmax(-1).gather(1, ids[prompt:, None])[:, 0]
        chosen = chosen + FAVOUR * (ids[prompt:] == END)
        torch.testing.assert_close(chosen.sum(), score, rtol=1e-3, atol=1e-3)
    assert sum(len(of_row) > 1 for of_row in starts) > 3  # beams of one row that differ in where they end it


def test_samples_of_one_prompt_keep_their_own_thinking(tiny_llama, adapter) -> None:
    torch.manual_seed(0)
    sampled = GREEDY | {"do_sample": True, "num_return_sequences": 6, "logits_processor": [Favoured()]}
    with load_personality(tiny_llama, SPEC, adapter, positions="answer", thinking=THINKING):
        output = tiny_llama.generate(PROMPTS[:1], **sampled)
    starts = set()
    for row, ids in enumerate(output.sequences):
        steered = steered_of(ids.tolist(), 6)
        starts.add(tuple(steered))
        logits = torch.stack([step[row] for step in output.logits])
        expected = expected_logits(tiny_llama, adapter, ids, 6, steered)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert len(starts) > 2


@pytest.mark.parametrize("prompt", [0, 1, 4])
def test_prompt_lookup(tiny_llama, adapter, prompt: int) -> None:
    row, written = PROMPTS[prompt : prompt + 1], [Written(WRITTEN[prompt : prompt + 1], PROMPTS.shape[1])]
    with load_personality(tiny_llama, SPEC, adapter, positions="answer", thinking=THINKING):
        usual = tiny_llama.generate(row, **GREEDY, logits_processor=written)
        # Prompts that repeat what is generated, so that there are candidates to look up, the marks among them.
        row = torch.cat([usual.sequences, row], 1)
        written = [Written(WRITTEN[prompt : prompt + 1], row.shape[1])]
        expected = tiny_llama.generate(row, **GREEDY, logits_processor=written)
        looked_up = tiny_llama.generate(row, **GREEDY, logits_processor=written, prompt_lookup_num_tokens=3)
    assert torch.equal(looked_up.sequences, expected.sequences)
    logits = torch.stack([step[0] for step in expected.logits])
    steered = steered_of(expected.sequences[0].tolist(), row.shape[1])
    check(tiny_llama, adapter, expected.sequences[0], row.shape[1], steered, logits)


@pytest.mark.parametrize("only_new", [False, True])
def test_second_turn_with_a_kept_cache(tiny_llama, adapter, only_new: bool) -> None:
    first, again = {1: END}, {0: BEGIN, 3: END}
    with load_personality(tiny_llama, SPEC, adapter, positions="answer", thinking=THINKING):
        one = tiny_llama.generate(PROMPTS[:1], **GREEDY, logits_processor=[Written([first], 6)])
        conversation = torch.cat([one.sequences, torch.tensor([[17, 4, 30]])], 1)
        given = conversation[:, one.past_key_values.get_seq_length() :] if only_new else conversation
        written = [Written([again], given.shape[1])]
        mask = torch.ones_like(conversation)
        two = tiny_llama.generate(
            given, attention_mask=mask, past_key_values=one.past_key_values, **GREEDY, logits_processor=written
        )
    whole = torch.cat([conversation, two.sequences[0:1, -NEW:]], 1)[0]
    # The last token of the first turn was never fed then, and is prompt now.
    moved = [6 + 1 <= at < 6 + NEW - 1 or at >= conversation.shape[1] + 3 for at in range(len(whole))]
    expected = logits_one_by_one(tiny_llama, adapter, whole, moved)[conversation.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.cat(two.logits), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_told_is_refused(tiny_llama, adapter, tiny_adapter) -> None:
    embedded = tiny_llama.get_input_embeddings()(PROMPTS).detach()
    asks = tiny_adapter(tiny_llama, positions="answer")
    with pytest.raises(NptiError, match=r"'answer' needs the marks .* load with thinking=Thinking.of\(tokenizer\)"):
        load_personality(tiny_llama, SPEC, asks)
    with load_personality(tiny_llama, SPEC, asks, thinking=THINKING) as personality:
        assert "positions answer" in personality.describe()
        with pytest.raises(NptiError, match="needs the ids of the prompt and of every token"):
            tiny_llama.generate(inputs_embeds=embedded, **GREEDY)
        with pytest.warns(UserWarning, match="no generated positions"):
            tiny_llama(PROMPTS)
        personality.set(None)
        tiny_llama.generate(inputs_embeds=embedded, **GREEDY)
    assert "prepare_inputs_for_generation" not in vars(tiny_llama)


@pytest.mark.parametrize(
    ("ids", "thinking"),
    [
        ([1, 2, 3], [0, 0, 0]),
        ([BEGIN, 2, END, 3], [1, 1, 0, 0]),
        ([END, 2, BEGIN, 3], [0, 0, 1, 1]),
        ([BEGIN, END, BEGIN, BEGIN], [1, 0, 1, 1]),
        ([1, BEGIN, 2, 3], [0, 1, 1, 1]),
        ([], []),
    ],
)
def test_covers(ids: list[int], thinking: list[int]) -> None:
    rows = torch.tensor([ids, ids], dtype=torch.int64)
    assert THINKING.covers(rows).int().tolist() == [thinking, thinking]


def test_marks_are_found_in_the_chat_template() -> None:
    tokenizer = tiny_tokenizer(SYSTEM_TEMPLATE + "{% if enable_thinking %}<think></think>{% endif %}")
    assert Thinking.of(tokenizer) is None  # mentioned, and no tokens
    tokenizer.add_tokens(["<think>", "</think>", "<plan>"])
    begin, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert Thinking.of(tokenizer) == Thinking(begin, end)
    tokenizer.chat_template = SYSTEM_TEMPLATE
    assert Thinking.of(tokenizer) is None  # tokens, and not mentioned
    assert Thinking.between(tokenizer, "<think>", "</think>") == Thinking(begin, end)
    with pytest.raises(NptiError, match=r"The mark '</plan>' is no token of .*; name the marks that the model writes"):
        Thinking.between(tokenizer, "<plan>", "</plan>")
