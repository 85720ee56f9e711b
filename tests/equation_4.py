"""Equation 4 of the paper written anew, with plain forward hooks, to hold the package's tables against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.records import PoleRecord
from npti_export.traits import Pole


def activations_of(model: nn.Module) -> list[nn.Module]:
    """The activation module of every layer of a Llama."""
    return [layer.mlp.act_fn for layer in model.model.layers]


@contextmanager
def steered_by_hooks(
    activations: list[nn.Module], adapter: PersonalityAdapter, trait: str, pole: Pole
) -> Iterator[None]:
    """Within the block every token is steered at strength 1: min with 0 on D, then plus γ · target · f(|δ|) on A."""
    hooks = []
    for layer, activation in enumerate(activations):
        hooks.append(activation.register_forward_hook(edit_of(adapter, trait, pole, layer)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def experts_of(record: PoleRecord) -> Sequence[int]:
    """The expert of each neuron of a pole, -1 for those of no routed expert."""
    return [-1] * len(record.neurons) if record.neurons.expert is None else record.neurons.expert.tolist()


def edit_of(
    adapter: PersonalityAdapter, trait: str, pole: Pole, layer: int, expert: int = -1
) -> Callable[[object, object, Tensor], Tensor]:
    """A forward hook that moves the activations of one layer, or of one of its routed experts."""
    towards, against = adapter.traits[trait].poles[pole], adapter.traits[trait].poles[pole.opposite]
    shifted = {
        int(at): towards.gamma * float(target) * (1.0 / (1.0 + math.exp(-10.0 * (abs(float(delta)) - 0.15))))
        for where, of, at, target, delta in zip(
            towards.neurons.layer,
            experts_of(towards),
            towards.neurons.index,
            towards.neurons.target,
            towards.neurons.delta,
            strict=True,
        )
        if (where, of) == (layer, expert)
    }
    of_opposite = zip(against.neurons.layer, experts_of(against), against.neurons.index, strict=True)
    capped = [int(at) for where, of, at in of_opposite if (where, of) == (layer, expert)]

    def edit(_module: nn.Module, _arguments: object, activation: Tensor) -> Tensor:
        moved = activation.clone()
        moved[..., capped] = torch.clamp(moved[..., capped], max=0.0)
        added = torch.tensor(list(shifted.values()), dtype=torch.float64).to(moved.dtype).to(moved.device)
        moved[..., list(shifted)] = moved[..., list(shifted)] + added
        return moved

    return edit
