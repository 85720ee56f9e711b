"""Tiny chat models for tests: a tokenizer of single characters, chat templates of several kinds, a random Llama."""

from __future__ import annotations

import string

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"

_OPENING = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
SYSTEM_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}" + _OPENING
)
"""Every role has a place of its own."""
RAISING_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}" + _OPENING
)
"""A system message is refused."""
TWO_ROLES_TEMPLATE = (
    "{% for m in messages %}{{ ('<|user|>' if m['role'] == 'user' else '<|assistant|>') + m['content'] + '<|end|>' }}"
    "{% endfor %}" + _OPENING
)
"""Whatever is not the user's is printed as if the assistant had said it."""
DROPPING_TEMPLATE = (
    "{% for m in messages if m['role'] != 'system' %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
    "{% endfor %}" + _OPENING
)
"""A system message is left out."""


def tiny_tokenizer(template: str | None = SYSTEM_TEMPLATE, pad_token: str | None = PAD) -> PreTrainedTokenizerFast:
    """One token for each printable ASCII character, and special ones for roles, padding and the end."""
    names = [PAD, END, UNKNOWN, *ROLES, *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad_token,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast


def tiny_chat_model(seed: int = 0, context: int = 96, name: str = "tests/tiny-chat") -> LlamaForCausalLM:
    """A random float32 Llama over that vocabulary, wide enough of weight that each prompt gets an answer of its own."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=3 + len(ROLES) + len(CHARACTERS),
        max_position_embeddings=context,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        name_or_path=name,
    )
    return LlamaForCausalLM(config).eval()


def tiny_chat_mixture(family: str, seed: int = 0, **sizes: object) -> PreTrainedModel:
    """A random mixture of experts over that vocabulary, its weights as wide.

    Args:
        family: The name of its config class in transformers, without ``Config``.
        seed: Of the weights.
        sizes: What its config needs beside the usual.
    """
    torch.manual_seed(seed)
    usual = {
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 3 + len(ROLES) + len(CHARACTERS),
        "max_position_embeddings": 96,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "name_or_path": f"tests/tiny-{family.lower()}",
    }
    config = getattr(transformers, f"{family}Config")(**usual | sizes)
    return AutoModelForCausalLM.from_config(config).eval()
