"""Families of models, and of quantised weights, that are tried under vLLM: what a tiny random one is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import transformers
from engines import TOLERANCE, VOCABULARY
from torch import nn
from vllm_weights import FP8, INT8, Weights

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


@dataclass(frozen=True)
class Family:
    """A family and what a tiny one needs beside the usual.

    Args:
        name: The name of its config class, without ``Config``; what follows a hyphen tells two of one family apart.
        sizes: Of the config, beside :data:`SIZES`.
        weights: The format of its weights, where they are quantised.
        note: What is special, for the table.
        tolerance: Nats that log-probabilities may lie from the runtime's.
    """

    name: str
    sizes: dict[str, object] = field(default_factory=dict)
    weights: Weights | None = None
    note: str = "–"
    tolerance: float = TOLERANCE

    def made(self) -> nn.Module:
        """A random model, its weights not quantised as yet."""
        torch.manual_seed(0)
        config = getattr(transformers, f"{self.name.partition('-')[0]}Config")(**SIZES | self.sizes)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


GPT = {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_inner": 192, "n_positions": 256}
OPT = {"ffn_dim": 192, "word_embed_proj_dim": 128}
HEAD = {"head_dim": 32}
MULTI_HEAD = {"num_key_value_heads": 4}  # a config without the word would carry it all the same, and vLLM reads it
MIXED = ["linear_attention", "full_attention", "linear_attention"]
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]
DELTA = {
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": MIXED,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 64}

# About in the order of their use.
FAMILIES = [
    Family("Llama", note="also compiled, and on two ranks"),
    Family("Qwen2"),
    Family("Qwen3", HEAD),
    Family("Gemma3Text", HEAD),
    Family("Mistral"),
    Family(
        "Qwen3_5Text",
        HEAD | DELTA,
        note="vLLM's code for it needs torchvision, and on a CPU bfloat16, so it could not be compared",
    ),
    Family("Gemma4Text", HEAD | {"hidden_size_per_layer_input": 0, "global_head_dim": 32, "layer_types": SLIDING}),
    Family("Ministral3", HEAD),
    Family("Gemma2", HEAD),
    Family("Gemma", HEAD),
    Family("Phi3"),
    Family("GPT2", GPT),
    Family("OPT", OPT),
    Family("GPTNeoX", MULTI_HEAD),
    Family("SmolLM3", HEAD),
    Family("Olmo3"),
    Family("Olmo2"),
    Family("Granite"),
    Family(
        "GraniteMoeHybrid",
        MAMBA
        | {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 192, "layer_types": MIXED},
        note="without experts; Mamba 2 in two of three layers",
    ),
    Family("Glm4", HEAD),
    Family("Cohere"),
    Family("Cohere2", HEAD),
    Family(
        "Falcon", {"intermediate_size": 512, "ffn_hidden_size": 512, "alibi": False, "new_decoder_architecture": False}
    ),
    Family(
        "FalconH1", HEAD | MAMBA | {"mamba_d_ssm": 256, "mlp_multipliers": [0.7, 0.4]}, note="Mamba 2 in each layer"
    ),
    Family(
        "Bloom",
        {"n_layer": 3, "n_head": 4, "intermediate_size": 512},
        note="vLLM computes GELU itself, transformers an approximation",
        tolerance=2e-3,
    ),
    Family("Phi"),
    Family("StableLm"),
    Family("Starcoder2"),
    Family("Exaone4", HEAD),
    Family(
        "Lfm2",
        {
            "block_auto_adjust_ff_dim": False,
            "conv_dim": 128,
            "block_dim": 128,
            "block_ff_dim": 192,
            "layer_types": ["conv", "full_attention", "conv"],
        },
        note="without the plugin too: vLLM on a CPU answers prompts of several tokens otherwise than transformers",
    ),
    Family("Olmo"),
    Family("Glm", HEAD),
    Family("GPTJ", {**GPT, "rotary_dim": 32}),
    Family("GPTBigCode", {**GPT, "num_key_value_heads": 1}),
    Family("Nemotron"),
    Family("SeedOss", HEAD),
    Family("Ernie4_5", HEAD),
    Family("HunYuanDenseV1", HEAD),
    Family("Ministral", HEAD),
    Family("Apertus", note="vLLM holds the numbers of xIELU in bfloat16", tolerance=5e-3),
    Family("Helium", HEAD),
    Family("Arcee"),
    Family("Cwm", {**HEAD, "bos_token_id": 2}),
    Family("Jais2", HEAD),
    Family("NanoChat"),
    Family(
        "Gemma3nText",
        HEAD
        | {
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "laurel_rank": 4,
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": [0.9, 0.0, 0.0],
            "layer_types": SLIDING,
        },
    ),
    Family("Mixtral", {"num_local_experts": 4}),
    Family("Qwen3Moe", {**HEAD, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}),
]

# A number that falls between two of a format may be rounded the one way in a kernel and the other way without it.
QUANTISED = [
    Family("Llama-INT8", {}, INT8, "weights and inputs in INT8, a scale a row and a token", 0.05),
    Family("OPT-INT8", OPT, INT8, "the same, layers without a gate", 0.05),
    Family("Llama-FP8", {}, FP8, "weights and inputs in FP8 (E4M3), a scale a row and a token", 0.2),
    Family("OPT-FP8", OPT, FP8, "the same, layers without a gate", 0.1),
]
