"""Randomly initialised models of any family, a few thousand parameters each."""

from __future__ import annotations

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny(family: str, **sizes: object) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**SIZES | sizes)).eval()


def tiny_llama(**sizes: object) -> LlamaForCausalLM:
    """A float32 Llama that ends no text, the same every time; weights are larger than usual, so that logits are far
    enough apart for a personality to change tokens.
    """
    usual: dict[str, object] = {
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "eos_token_id": None,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | usual | sizes)).eval()
