"""Continuations are scored in plain forwards as if they had been generated, each row behind its own prompt."""

from __future__ import annotations

import pytest
import torch
from one_by_one import logits_one_by_one
from tiny_models import tiny
from transformers import LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.errors import NptiError

SPEC = "openness+"
PROMPTS = [3, 1, 6]


@pytest.fixture
def adapter(tiny_llama: LlamaForCausalLM, tiny_adapter) -> PersonalityAdapter:
    return tiny_adapter(tiny_llama)


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randint(3, 64, (3, 8), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def test_each_row_is_steered_from_its_prompts_last_token_on(tiny_llama, adapter, rows) -> None:
    with load_personality(tiny_llama, SPEC, adapter) as personality, personality.scoring(PROMPTS):
        logits = tiny_llama(rows).logits
    for row, length, found in zip(rows, PROMPTS, logits, strict=True):
        expected = logits_one_by_one(tiny_llama, adapter, row, [at >= length - 1 for at in range(8)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_rows_with_personalities_of_their_own(tiny_llama, adapter, rows) -> None:
    plain = tiny_llama(rows).logits
    with load_personality(tiny_llama, [SPEC, None, "openness-"], adapter) as personality:
        with personality.scoring(PROMPTS):
            mixed = tiny_llama(rows).logits
        alone = []
        for spec in (SPEC, None, "openness-"):
            with personality.using(spec), personality.scoring(PROMPTS):
                alone.append(tiny_llama(rows).logits)
    for at in range(3):
        torch.testing.assert_close(mixed[at], alone[at][at], rtol=1e-4, atol=1e-5)
    assert torch.equal(alone[1], plain)


@torch.no_grad()
def test_all_steers_the_prompt_too(tiny_llama, adapter, rows) -> None:
    with load_personality(tiny_llama, SPEC, adapter, positions="all") as personality:
        everywhere = tiny_llama(rows).logits
        with personality.scoring(PROMPTS):
            assert torch.equal(tiny_llama(rows).logits, everywhere)


@torch.no_grad()
def test_flattened_rows_are_told_apart() -> None:
    from adapters_for_tests import make_adapter

    model = tiny("OPT", ffn_dim=48, do_layer_norm_before=True, word_embed_proj_dim=32)
    adapter, rows = make_adapter(model), torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(4))
    plain = model(rows).logits
    with load_personality(model, SPEC, adapter) as personality:
        with personality.scoring([6, 2]):
            both = model(rows).logits
        with personality.scoring([2]):
            second = model(rows[1:]).logits[0]
    torch.testing.assert_close(both[0, :5], plain[0, :5])
    assert not torch.allclose(both[0, 5], plain[0, 5])
    torch.testing.assert_close(both[1], second)


def test_generate_within_the_block_is_as_outside(tiny_llama, adapter, rows) -> None:
    greedy = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with load_personality(tiny_llama, SPEC, adapter) as personality:
        outside = tiny_llama.generate(rows, **greedy)
        with personality.scoring([2]):
            assert torch.equal(tiny_llama.generate(rows, **greedy), outside)


@torch.no_grad()
def test_refusals(tiny_llama, adapter, rows) -> None:
    with load_personality(tiny_llama, SPEC, adapter) as personality:
        with personality.scoring([2, 2]), pytest.raises(NptiError, match="of 2 prompts were given and the batch has 3"):
            tiny_llama(rows)
        with pytest.raises(NptiError, match=r"Prompt lengths are \[2, 0, 1\]"), personality.scoring([2, 0, 1]):
            pass
    with pytest.raises(NptiError, match="was unloaded"), personality.scoring([2, 2, 2]):
        pass
