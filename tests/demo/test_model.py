"""The bundled model as users get it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from npti_export.identification.answers import has_system_role
from npti_export.steering.sites import find_sites


def test_it_is_small_and_loads_without_remote_code(demo_model_folder: Path) -> None:
    size = sum(file.stat().st_size for file in demo_model_folder.iterdir())
    assert size <= 16_000_000
    assert not list(demo_model_folder.glob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(demo_model_folder)
    assert model.config.model_type == "llama"
    assert model.dtype == torch.bfloat16
    assert all(site.gated for site in find_sites(model))


def test_its_template_knows_all_three_roles(demo_model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    assert has_system_role(tokenizer)
    messages = [
        {"role": "system", "content": "You are calm."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|system|>You are calm.<|end|><|user|>Hello?<|end|><|assistant|>Hi.<|end|>"
    assert tokenizer.decode(tokenizer("Ünïcode 🙂 stays.")["input_ids"]) == "Ünïcode 🙂 stays."
