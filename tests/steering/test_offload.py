"""Accelerate: a model whose weights are brought in layer by layer from the CPU's memory or from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from equation_4 import activations_of, steered_by_hooks
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.traits import Pole

accelerate = pytest.importorskip("accelerate")

SPEC = "openness+"
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
IDS = torch.tensor([[5, 9, 33, 60], [7, 8, 21, 3]])


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def offloaded(model: LlamaForCausalLM, place: str, folder: Path) -> nn.Module:
    if place == "memory":
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    model.save_pretrained(folder / "model")
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    parts |= {f"model.layers.{layer}": "cpu" if layer == 0 else "disk" for layer in range(3)}
    return AutoModelForCausalLM.from_pretrained(
        folder / "model", device_map=parts, offload_folder=folder / "weights", dtype=torch.float32
    )


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_offloaded_model_is_steered_and_restored(tiny_llama, tiny_adapter, tmp_path, place: str) -> None:
    adapter: PersonalityAdapter = tiny_adapter(tiny_llama)
    plain, tokens = logits(tiny_llama), tiny_llama.generate(IDS, **GREEDY)
    with steered_by_hooks(activations_of(tiny_llama), adapter, "openness", Pole.HIGH):
        expected = logits(tiny_llama)
    with load_personality(tiny_llama, [SPEC, None], adapter):
        steered = tiny_llama.generate(IDS, **GREEDY)
    model = offloaded(tiny_llama, place, tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    with load_personality(model, SPEC, adapter, positions="all"):
        assert torch.equal(logits(model), expected)
    with load_personality(model, [SPEC, None], adapter):
        assert torch.equal(model.generate(IDS, **GREEDY), steered)
    assert torch.equal(logits(model), plain)
    assert torch.equal(model.generate(IDS, **GREEDY), tokens)
    assert not torch.equal(steered, tokens)
