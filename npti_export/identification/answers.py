"""Batched answers of a chat model: the prompt through its chat template, greedy, left-padded, with a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.errors import NptiError
from npti_export.identification.processes import from_all, in_turns
from npti_export.steering.thinking import Thinking

Progress = Callable[[int], None]
"""Told how many more are done."""


@dataclass(frozen=True)
class Prompt:
    """A question to a model.

    Args:
        question: What is asked.
        persona: What stands before all as the system's message; None is nothing.
        shots: Questions and answers that stand before the question as earlier turns.
    """

    question: str
    persona: str | None = None
    shots: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Args:
        text: Without special tokens, and without a reasoning model's thinking.
        token_ids: As generated, the end sign included where the model gave one.
        finished: Whether it did, or broke off at the largest number of tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded: greedily, so that they can be repeated.

    Args:
        max_new_tokens: Largest number of tokens; less where the context leaves less behind the batch's longest prompt.
        repetition_penalty: Of the transformers processor of that name (identification 1.1, evaluation 1.15 as in the
            published scripts).
        batch_size: Rows of one ``generate`` call.
    """

    max_new_tokens: int
    repetition_penalty: float
    batch_size: int = 32


def messages_of(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """The chat messages of a prompt; without a system role the persona stands before the question."""
    turns = [
        {"role": role, "content": text}
        for shot in prompt.shots
        for role, text in zip(("user", "assistant"), shot, strict=True)
    ]
    turns.append({"role": "user", "content": prompt.question})
    if prompt.persona is None:
        return turns
    if has_system_role(tokenizer):
        return [{"role": "system", "content": prompt.persona}, *turns]
    return [{"role": "user", "content": f"{prompt.persona}\n\n{turns[0]['content']}"}, *turns[1:]]


def has_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template gives a system message a place of its own.

    Some templates refuse one, some leave it out, and some print it as if the assistant had said it.
    """
    question = {"role": "user", "content": "q"}
    mark = "npti persona"  # no default system prompt holds it
    try:
        system = _render(tokenizer, [{"role": "system", "content": mark}, question])
    except Exception:  # a template may raise anything, jinja2's own errors included
        return False
    try:
        assistant = _render(tokenizer, [{"role": "assistant", "content": mark}, question])
    except Exception:
        assistant = ""
    return mark in system and system != assistant


def prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt, up to where the answer begins.

    Raises:
        NptiError: If the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise NptiError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template, so it is no chat model; name one."
        )
    text = _render(tokenizer, messages_of(prompt, tokenizer))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    progress: Progress | None = None,
) -> list[Answer]:
    """Asks a model many questions; where several processes share the work, each calls this and gets all answers.

    Args:
        model: A chat model.
        tokenizer: Its tokenizer.
        prompts: What to ask.
        decoding: How to decode.
        progress: Called with the number of answers that a batch gave.

    Returns:
        The answers in the order of the prompts.

    Raises:
        NptiError: If a prompt fills the model's context; nothing has been asked then.
    """
    encoded = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    check_room(model, encoded)
    answers: dict[int, Answer] = {}
    for mine, of_all in in_turns(batches_of(encoded, decoding.batch_size)):
        said = _generate(model, tokenizer, [encoded[at] for at in mine], decoding) if mine else []
        for places, of_process in zip(of_all, from_all(said), strict=False):  # a last turn may not be for all processes
            answers.update(zip(places, of_process, strict=True))
        if progress:
            progress(sum(map(len, of_all)))
    return [answers[at] for at in range(len(prompts))]


def answer_of_text(
    text: str, finished: bool, prompt: list[int], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Answer:
    """What somebody else's words are as an answer of this model: their tokens, with the end sign where they end.

    Args:
        text: The words, thinking included where there was any.
        finished: Whether the answer came to an end.
        prompt: Token ids of what was asked; an answer that the model's context does not hold behind it is cut.
        model: The model that is taken to have said it.
        tokenizer: Its tokenizer.
    """
    ends = end_tokens(model, tokenizer)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if finished and ends:
        end = tokenizer.eos_token_id
        ids.append(end if end in ends else min(ends))
    return answer_of_tokens(ids, prompt, model, tokenizer)


def answer_of_tokens(
    ids: Sequence[int], prompt: list[int], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Answer:
    """Tokens as an answer of this model: up to the first end sign, and no more than its context holds.

    Args:
        ids: Token ids of the answer.
        prompt: Token ids of what was asked.
        model: The model that is taken to have said it.
        tokenizer: Its tokenizer.
    """
    room = context_length(model) - len(prompt)
    return _cut(prompt, list(ids[:room]), end_tokens(model, tokenizer), tokenizer, Thinking.of(tokenizer))


def batches_of(rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Places of the rows that are worked on at once: rows of like length, which waste least padding.

    The same rows give the same batches, and a batch taken by itself is one batch again.

    >>> batches_of([[1, 2, 3], [1], [1, 2]], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    return [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]


def check_room(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
    """Refuses prompts that leave no room for an answer, before anything is asked."""
    longest = max(map(len, rows), default=0)
    if longest >= context_length(model):
        raise NptiError(
            f"A prompt of {longest} tokens fills the context of {context_length(model)} tokens; shorten the persona or "
            "the question."
        )


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer."""
    configured: Any = model.generation_config.eos_token_id if model.generation_config else None
    ends = configured if isinstance(configured, list) else [configured]
    return {int(end) for end in [*ends, tokenizer.eos_token_id] if end is not None}


def context_length(model: PreTrainedModel) -> int:
    """Largest number of tokens the model takes."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31 - 1)


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], decoding: Decoding
) -> list[Answer]:
    longest = max(map(len, rows))
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    # Rows are filled up with their own first token, behind the mask: whether the repetition penalty leaves padding out
    # depends on the release of transformers, and a padding token that ends answers too must not be penalised.
    ids = torch.tensor([[row[0]] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        output: Any = model.generate(  # type: ignore[operator]
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=decoding.repetition_penalty,
            max_new_tokens=min(decoding.max_new_tokens, context_length(model) - longest),
            pad_token_id=pad,
            eos_token_id=sorted(ends) or None,
        )
    thinking = Thinking.of(tokenizer)
    written = output[:, longest:].tolist()
    return [_cut(row, said, ends, tokenizer, thinking) for row, said in zip(rows, written, strict=True)]


def _cut(
    prompt: list[int], row: list[int], ends: set[int], tokenizer: PreTrainedTokenizerBase, thinking: Thinking | None
) -> Answer:
    length = next((at + 1 for at, token in enumerate(row) if token in ends), None)
    kept = row if length is None else row[:length]
    said = kept
    if thinking:
        thought = thinking.covers(torch.tensor([prompt + kept]))[0, len(prompt) :].tolist()
        said = [token for token, covered in zip(kept, thought, strict=True) if not covered and token != thinking.end]
    return Answer(tokenizer.decode(said, skip_special_tokens=True).strip(), tuple(kept), length is not None)  # type: ignore[union-attr]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    # Reasoning models take enable_thinking; templates that do not know it ignore it.
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return str(text)
