"""Continuations are scored as a loop over single rows scores them, whatever the batch, steered or not."""

from __future__ import annotations

import math

import pytest
import torch
from one_by_one import logits_one_by_one
from transformers import LlamaForCausalLM

from npti_export import load_personality
from npti_export.errors import NptiError
from npti_export.evaluation.likelihood import continuation_likelihoods

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12]]
CONTINUATIONS = [[13], [14, 15, 16], [17, 18]]


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_scores_are_those_of_the_tokens_fed_one_by_one(tiny_llama: LlamaForCausalLM, tiny_adapter, batch_size) -> None:
    adapter = tiny_adapter(tiny_llama)
    for steer in (False, True):
        expected = []
        for prompt, continuation in zip(PROMPTS, CONTINUATIONS, strict=True):
            steered = [steer and at >= len(prompt) - 1 for at in range(len(prompt) + len(continuation))]
            logits = logits_one_by_one(tiny_llama, adapter, torch.tensor(prompt + continuation), steered)
            of_continuation = logits[len(prompt) - 1 : -1].log_softmax(-1)
            expected.append(sum(float(of_continuation[at, token]) for at, token in enumerate(continuation)))
        with load_personality(tiny_llama, "openness+" if steer else None, adapter) as personality:
            found = continuation_likelihoods(tiny_llama, PROMPTS, CONTINUATIONS, personality, batch_size)
        assert [one.log_probability for one in found] == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_neutral_is_the_model_alone_and_greedy_is_what_it_would_say(tiny_llama, tiny_adapter) -> None:
    alone = continuation_likelihoods(tiny_llama, PROMPTS, CONTINUATIONS)
    with load_personality(tiny_llama, "neutral", tiny_adapter(tiny_llama)) as personality:
        assert continuation_likelihoods(tiny_llama, PROMPTS, CONTINUATIONS, personality) == alone
    said = tiny_llama.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=2, do_sample=False, pad_token_id=0)
    greedy = said[0, len(PROMPTS[0]) :].tolist()
    other = [greedy[0], (greedy[1] + 1) % 64]
    both = continuation_likelihoods(tiny_llama, [PROMPTS[0]] * 2, [greedy, other])
    assert [one.greedy for one in both] == [True, False]


def test_a_prompt_longer_than_the_context_loses_its_beginning(tiny_llama) -> None:
    room = tiny_llama.config.max_position_embeddings
    prompt = [3 + at % 50 for at in range(room + 7)]
    long, cut = continuation_likelihoods(tiny_llama, [prompt, prompt[8:]], [[5, 6]] * 2)
    assert long.log_probability == pytest.approx(cut.log_probability, abs=1e-4)
    assert math.isfinite(long.log_probability)


@pytest.mark.parametrize(("prompt", "continuation"), [([], [5]), ([5], []), ([5], [6] * 10_000)])
def test_what_cannot_be_scored_is_refused(tiny_llama, prompt: list[int], continuation: list[int]) -> None:
    with pytest.raises(NptiError, match="cannot be scored"):
        continuation_likelihoods(tiny_llama, [prompt], [continuation])
