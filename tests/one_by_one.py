"""Tokens fed to a Llama one by one, each steered by plain hooks or not, to hold every way of generating against."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from equation_4 import activations_of, steered_by_hooks
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from npti_export import PersonalityAdapter
from npti_export.traits import Pole


@torch.no_grad()
def logits_one_by_one(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, ids: Tensor, steered: Sequence[bool]
) -> Tensor:
    """The logits behind each token of a sequence.

    Args:
        model: The model, unsteered.
        adapter: Of its openness the high pole steers.
        ids: The sequence, int64 [tokens].
        steered: Which of its tokens are.

    Returns:
        float [tokens, vocabulary].
    """
    cache, logits = DynamicCache(), []
    for token, moved in zip(ids, steered, strict=True):
        hooks = steered_by_hooks(activations_of(model), adapter, "openness", Pole.HIGH) if moved else nullcontext()
        with hooks:
            logits.append(model(token.view(1, 1), past_key_values=cache).logits[0, -1])
    return torch.stack(logits)
