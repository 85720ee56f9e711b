"""On a GPU: the same tables bit for bit, the same logits to rounding, neutral and unloaded exact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from npti_export import load_personality

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]

SPECS = ["openness+", "neuroticism-", "openness-0.5,neuroticism+1.2", None, "openness+"]
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.5}
"""Logits of the tiny model are of the order of 5; bfloat16 has 8 bits."""


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_switching_on_a_gpu_equals_the_cpu(tiny_llama: LlamaForCausalLM, tiny_adapter, dtype: torch.dtype) -> None:
    here = tiny_llama.to(dtype)
    there = copy.deepcopy(here).cuda()
    adapter = tiny_adapter(here)
    ids = torch.randint(3, 64, (3, 9), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def logits(model: LlamaForCausalLM) -> Tensor:
        return model(ids.to(model.device)).logits

    plain = logits(there)
    with (
        load_personality(here, None, adapter, positions="all") as on_cpu,
        load_personality(there, None, adapter, positions="all") as on_gpu,
    ):
        assert torch.equal(logits(there), plain)
        for spec in [*SPECS, ["openness+", None, "neuroticism-"]]:
            on_cpu.set(spec)
            on_gpu.set(spec)
            for mine, theirs in zip(here.model.layers, there.model.layers, strict=True):
                assert torch.equal(theirs.mlp.act_fn.tables.cap.cpu(), mine.mlp.act_fn.tables.cap)
                assert torch.equal(theirs.mlp.act_fn.tables.shift.cpu(), mine.mlp.act_fn.tables.shift)
            torch.testing.assert_close(logits(there).cpu(), logits(here), atol=TOLERANCES[dtype], rtol=0.02)
            assert torch.equal(logits(there), plain) == (spec is None)
        assert torch.equal(logits(there)[1], plain[1])
    assert torch.equal(logits(there), plain)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_generate_on_a_gpu(tiny_llama: LlamaForCausalLM, tiny_adapter, dtype: torch.dtype) -> None:
    model = tiny_llama.to(dtype).cuda()
    ids = torch.tensor([[5, 9, 33, 60], [7, 8, 21, 3]], device="cuda")
    greedy = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    plain = model.generate(ids, **greedy, output_logits=True)
    with load_personality(model, ["openness+", None], tiny_adapter(model)):
        steered = model.generate(ids, **greedy, output_logits=True)
    assert torch.equal(steered.logits[0], plain.logits[0])
    assert torch.equal(steered.sequences[1], plain.sequences[1])
    assert not torch.equal(steered.logits[1][0], plain.logits[1][0])
    assert torch.equal(model.generate(ids, **greedy).sequences, plain.sequences)


def test_model_moved_to_the_gpu_while_loaded(tiny_llama: LlamaForCausalLM, tiny_adapter) -> None:
    ids = torch.tensor([[5, 9, 33, 60]])
    with load_personality(tiny_llama, "openness+", tiny_adapter(tiny_llama), positions="all"), torch.no_grad():
        here = tiny_llama(ids).logits
        torch.testing.assert_close(tiny_llama.cuda()(ids.cuda()).logits.cpu(), here, atol=1e-3, rtol=0.02)
