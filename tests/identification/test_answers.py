"""Answers in batches: the same as one by one, within the context, through whatever the chat template offers."""

from __future__ import annotations

import pytest
import torch
from chat_models import (
    DROPPING_TEMPLATE,
    END,
    RAISING_TEMPLATE,
    SYSTEM_TEMPLATE,
    TWO_ROLES_TEMPLATE,
    tiny_chat_model,
    tiny_tokenizer,
)
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, RepetitionPenaltyLogitsProcessor

from npti_export.errors import NptiError
from npti_export.identification.answers import (
    Decoding,
    Prompt,
    batches_of,
    end_tokens,
    generate_answers,
    has_system_role,
    prompt_ids,
)

PROMPTS = [
    Prompt("What do you do on a free day?"),
    Prompt("Why?", "You are bold."),
    Prompt("Tea?"),
    Prompt("A party?", "You would rather stay at home."),
    Prompt("Who is there?"),
]
DECODING = Decoding(max_new_tokens=20, repetition_penalty=1.1, batch_size=4)


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_chat_model()


def by_hand(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: Prompt, tokens: int, penalty: float
) -> list[int]:
    """Greedy decoding of one prompt without cache, padding or ``generate``."""
    ids = prompt_ids(prompt, tokenizer)
    start = len(ids)
    penalise = RepetitionPenaltyLogitsProcessor(penalty)
    while len(ids) - start < tokens:
        row = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=row, use_cache=False).logits[:, -1]
        ids.append(int(penalise(row, logits).argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return ids[start:]


@pytest.mark.parametrize("penalty", [1.0, 1.1, 3.0])
def test_a_batch_answers_like_plain_greedy_decoding(model: LlamaForCausalLM, penalty: float) -> None:
    tokenizer = tiny_tokenizer()
    answers = generate_answers(model, tokenizer, PROMPTS, Decoding(20, penalty, batch_size=4))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert list(answer.token_ids) == by_hand(model, tokenizer, prompt, 20, penalty)
    assert len({answer.text for answer in answers}) == len(PROMPTS)


def test_padding_that_ends_answers_too_does_not_change_them(model: LlamaForCausalLM) -> None:
    """Where the padding token is one of the end signs, the repetition penalty must not see the padding."""
    tokenizer = tiny_tokenizer(pad_token="#")  # which this model likes to say
    model.generation_config.eos_token_id = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    decoding = Decoding(max_new_tokens=20, repetition_penalty=2.0, batch_size=len(PROMPTS))
    together = generate_answers(model, tokenizer, PROMPTS, decoding)
    alone = [generate_answers(model, tokenizer, [prompt], decoding)[0] for prompt in PROMPTS]
    assert together == alone
    assert sum(answer.finished for answer in alone) >= 2


def test_an_answer_ends_with_its_end_sign_and_the_text_is_without(model: LlamaForCausalLM) -> None:
    tokenizer = tiny_tokenizer()
    [free] = generate_answers(model, tokenizer, PROMPTS[:1], DECODING)
    assert (free.finished, len(free.token_ids)) == (False, 20)
    fifth = free.token_ids[5]
    first = free.token_ids.index(fifth)
    model.generation_config.eos_token_id = [fifth, tokenizer.eos_token_id]
    assert end_tokens(model, tokenizer) == {fifth, tokenizer.eos_token_id}
    answers = generate_answers(model, tokenizer, PROMPTS, DECODING)
    assert answers[0].finished
    assert answers[0].token_ids == free.token_ids[: first + 1]
    assert all(fifth not in answer.token_ids[:-1] for answer in answers)
    assert all(END not in answer.text for answer in answers)


def test_new_tokens_are_capped_at_what_the_context_leaves(model: LlamaForCausalLM) -> None:
    tokenizer = tiny_tokenizer()
    question = "x" * (96 - 3 - 7)  # the template adds three tokens
    [answer] = generate_answers(model, tokenizer, [Prompt(question)], DECODING)
    assert len(prompt_ids(Prompt(question), tokenizer)) == 96 - 7
    assert len(answer.token_ids) == 7


def test_a_prompt_that_fills_the_context_is_refused_before_anything_is_asked(model: LlamaForCausalLM) -> None:
    progress: list[int] = []
    prompts = [*PROMPTS, Prompt("x" * (96 - 3))]
    with pytest.raises(NptiError, match=r"^A prompt of 96 tokens fills the context of 96 tokens; shorten the persona"):
        generate_answers(model, tiny_tokenizer(), prompts, Decoding(5, 1.1, batch_size=1), progress.append)
    assert progress == []


def test_a_tokenizer_without_chat_template_is_refused(model: LlamaForCausalLM) -> None:
    tokenizer = tiny_tokenizer(template=None)
    tokenizer.name_or_path = "some/base-model"
    with pytest.raises(NptiError, match=r"^The tokenizer of some/base-model has no chat template, so it is no chat"):
        generate_answers(model, tokenizer, PROMPTS, DECODING)


@pytest.mark.parametrize(
    ("template", "system_role", "expected"),
    [
        (SYSTEM_TEMPLATE, True, "<|system|>You are bold.<|end|><|user|>Why?<|end|><|assistant|>"),
        (RAISING_TEMPLATE, False, "<|user|>You are bold.\n\nWhy?<|end|><|assistant|>"),
        (TWO_ROLES_TEMPLATE, False, "<|user|>You are bold.\n\nWhy?<|end|><|assistant|>"),
        (DROPPING_TEMPLATE, False, "<|user|>You are bold.\n\nWhy?<|end|><|assistant|>"),
    ],
    ids=["system", "raising", "two-roles", "dropping"],
)
def test_where_the_persona_stands(template: str, system_role: bool, expected: str) -> None:
    tokenizer = tiny_tokenizer(template)
    assert has_system_role(tokenizer) is system_role
    assert tokenizer.decode(prompt_ids(Prompt("Why?", "You are bold."), tokenizer)) == expected
    plain = tokenizer.decode(prompt_ids(Prompt("Why?"), tokenizer))
    assert plain == "<|user|>Why?<|end|><|assistant|>"


def test_progress_tells_how_many_more(model: LlamaForCausalLM) -> None:
    progress: list[int] = []
    generate_answers(model, tiny_tokenizer(), PROMPTS, Decoding(1, 1.1, batch_size=2), progress.append)
    assert progress == [2, 2, 1]
    assert generate_answers(model, tiny_tokenizer(), [], DECODING) == []


def test_batches_hold_rows_of_like_length_and_stay_whole() -> None:
    rows = [[0] * length for length in (5, 1, 3, 1, 4)]
    batches = batches_of(rows, 2)
    assert batches == [[1, 3], [2, 4], [0]]
    for places in batches:
        assert batches_of([rows[at] for at in places], 2) == [list(range(len(places)))]
