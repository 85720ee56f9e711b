"""The NLL of answers against a plain loop over their tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from chat_models import tiny_chat_model, tiny_tokenizer
from transformers import LlamaForCausalLM

from npti_export.evaluation.fluency import answer_nll
from npti_export.identification.answers import Answer, Decoding, Prompt, generate_answers, prompt_ids

TOKENIZER = tiny_tokenizer()
QUESTIONS = ["Art?", "What do you do on a free day?", "Tea?", "Why not?", "Who?"]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_chat_model()


def slow_nll(model: LlamaForCausalLM, question: str, answer: Answer) -> float:
    """One forward a token, no padding, no batch."""
    ids = prompt_ids(Prompt(question), TOKENIZER)
    total = 0.0
    for token in answer.token_ids:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        total -= float(logits[token] - torch.logsumexp(logits, 0))
        ids.append(token)
    return total / len(answer.token_ids)


def answers_of_many_lengths(model: LlamaForCausalLM) -> list[Answer]:
    personas = ["You dream.", None, "You count.", None, "You file."]
    prompts = [Prompt(question, persona) for question, persona in zip(QUESTIONS, personas, strict=True)]
    said = generate_answers(model, TOKENIZER, prompts, Decoding(30, 1.15))
    cut = [Answer(a.text, a.token_ids[: 3 + 5 * at], False) for at, a in enumerate(said)]
    ended = Answer("x", (*said[0].token_ids[:4], 1), True)
    return [ended, *cut[1:]]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_it_is_that_of_a_plain_loop(model: LlamaForCausalLM, batch_size: int) -> None:
    answers = answers_of_many_lengths(model)
    nll = answer_nll(model, TOKENIZER, QUESTIONS, answers, batch_size)
    assert nll.dtype == np.float64
    expected = [slow_nll(model, question, answer) for question, answer in zip(QUESTIONS, answers, strict=True)]
    np.testing.assert_allclose(nll, expected, rtol=1e-4)
    assert len(set(np.round(nll, 3))) == len(nll)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(model: LlamaForCausalLM) -> None:
    flat = tiny_chat_model()
    with torch.no_grad():
        flat.lm_head.weight.zero_()
    nll = answer_nll(flat, TOKENIZER, QUESTIONS, answers_of_many_lengths(model))
    np.testing.assert_allclose(nll, math.log(flat.config.vocab_size), rtol=1e-6)


def test_what_the_model_says_itself_costs_less(model: LlamaForCausalLM) -> None:
    own = generate_answers(model, TOKENIZER, [Prompt(question) for question in QUESTIONS], Decoding(20, 1.0))
    other = [Answer("", tuple(reversed(answer.token_ids)), False) for answer in own]
    mine, theirs = (answer_nll(model, TOKENIZER, QUESTIONS, said) for said in (own, other))
    assert (mine < theirs).all()
