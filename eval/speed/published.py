"""The way of the published scripts, written anew: every layer's feed-forward gets a Python forward that adds by index.

Without their random omission of shifts, which would cost more.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from npti_export import PersonalityAdapter
from npti_export.traits import Pole


def steer(model: LlamaForCausalLM, adapter: PersonalityAdapter, trait: str) -> None:
    """Steers a Llama towards the high pole of a trait, for good.

    Args:
        model: The model.
        adapter: Where the neurons come from.
        trait: Which trait.
    """
    high, low = (adapter.traits[trait].poles[pole].neurons for pole in (Pole.HIGH, Pole.LOW))
    for number, layer in enumerate(model.model.layers):
        weight = layer.mlp.gate_proj.weight
        there = high.layer == number
        index = torch.from_numpy(high.index[there]).long().to(weight.device)
        shift = torch.from_numpy(high.shift[there]).to(weight)
        capped = torch.from_numpy(low.index[low.layer == number]).long().to(weight.device)
        layer.mlp.forward = MethodType(_forward(index, shift, capped), layer.mlp)


def _forward(index: Tensor, shift: Tensor, capped: Tensor):  # type: ignore[no-untyped-def]
    def forward(self: nn.Module, hidden: Tensor) -> Tensor:
        activation = self.act_fn(self.gate_proj(hidden))
        activation[..., capped] = activation[..., capped].clamp(max=0)
        activation = activation.index_add(-1, index, shift.expand(*activation.shape[:-1], -1))
        return self.down_proj(activation * self.up_proj(hidden))

    return forward
