"""Random Llamas of the shapes that speed is measured on, the same for the project and for its peers."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 192, "heads": 4, "vocab_size": 500},
    "60m": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536, "heads": 8, "vocab_size": 32000},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "heads": 32, "vocab_size": 128256},
}
"""By name; ``tiny`` is for trying the script out, ``8b`` is Llama-3-8B's."""


def build(shape: str, device: str) -> LlamaForCausalLM:
    """A random model, float32 on a CPU and bfloat16 on a GPU.

    Args:
        shape: One of :data:`SHAPES`.
        device: Where it is built and stays.
    """
    sizes = dict(SHAPES[shape])
    heads = sizes.pop("heads")
    config = LlamaConfig(
        **sizes,
        num_attention_heads=heads,
        num_key_value_heads=8 if shape == "8b" else heads,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(usual)


def twin(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Another model of the very same parameters, to be steered or compiled by itself."""
    held: list[nn.Parameter | torch.Tensor] = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in held})
