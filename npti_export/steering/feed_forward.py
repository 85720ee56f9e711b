"""What in a decoder layer has the shape of a feed-forward block: maps out and back, and what may be the activation.

Nothing is run here and no name is looked at. A shape alone can deceive (Gemma 3n has a second pair of maps with an
activation in every layer), so whoever asks must see which candidate behaves like one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from torch import nn
from transformers.pytorch_utils import Conv1D

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Wiring(Enum):
    """How the wide maps reach the map back."""

    GATED = auto()
    """``down(act(gate(x)) * up(x))``"""
    FUSED = auto()
    """The same with gate and up in one map, a half of its output each."""
    PLAIN = auto()
    """``down(act(up(x)))``"""


@dataclass(frozen=True)
class Candidate:
    """A module with the shape of a feed-forward block.

    Args:
        name: Dotted name of the module within the model.
        module: The block.
        wiring: What the shapes say; the data must say so too.
        wide: Names of the maps from hidden size to the neurons, within the block.
        narrow: Name of the map back.
        width: Number of neurons.
        activation: Name of what may be the activation; None where the block holds none and must apply a function.
    """

    name: str
    module: nn.Module
    wiring: Wiring
    wide: tuple[str, ...]
    narrow: str
    width: int
    activation: str | None

    def child(self, name: str) -> nn.Module:
        """A module of the block by its name."""
        return self.module.get_submodule(name)


def candidates(layer: nn.Module, layer_name: str) -> list[Candidate]:
    """All parts of a layer that have the shape of a feed-forward block, the layer itself included (OPT).

    Args:
        layer: A decoder layer.
        layer_name: Its dotted name within the model.

    >>> mlp = nn.ModuleDict({"up": nn.Linear(4, 9), "act": nn.ReLU(), "down": nn.Linear(9, 4)})
    >>> [(found.narrow, found.width, found.activation) for found in candidates(mlp, "mlp")]
    [('up', 4, 'act'), ('down', 9, 'act')]

    By shape alone either map may be the narrow one; what flows through them tells (flow.py).
    """
    return [found for name, module in layer.named_modules(prefix=layer_name) for found in _of_module(name, module)]


def _of_module(name: str, module: nn.Module) -> Iterator[Candidate]:
    children = dict(module.named_children())
    shapes = {key: shape for key, child in children.items() if (shape := map_shape(child))}
    if len(shapes) not in (2, 3) or any(isinstance(child, CONVOLUTIONS) for child in children.values()):
        return  # a state-space mixer has two maps, an activation, and a convolution between them
    activations = [key for key in activations_in(module) if key not in shapes]
    for narrow, (width, hidden) in shapes.items():
        wide = tuple(key for key in shapes if key != narrow)
        if all(shapes[key] == (hidden, width) for key in wide):
            wiring = Wiring.PLAIN if len(wide) == 1 else Wiring.GATED
        elif [shapes[key] for key in wide] == [(hidden, 2 * width)]:
            wiring = Wiring.FUSED
        else:
            continue
        none: list[str | None] = [None] if wiring is Wiring.GATED else []
        for activation in activations or none:
            yield Candidate(name, module, wiring, wide, narrow, width, activation)


def activations_in(module: nn.Module) -> list[str]:
    """Names of the parts of a module, one level down, that may be activations."""
    return [name for name, child in module.named_children() if _may_be_activation(child)]


def map_shape(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear map, also one that is quantised, wrapped or stored transposed (GPT-2)."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (inputs, outputs) if isinstance(inputs, int) and isinstance(outputs, int) else None


def _may_be_activation(module: nn.Module) -> bool:
    """No parts, no parameters but single numbers (xIELU has two), and neither dropout nor the identity."""
    if isinstance(module, nn.Dropout | nn.Identity):
        return False
    return not list(module.children()) and all(parameter.numel() == 1 for parameter in module.parameters())


def experts_in(layer: nn.Module, layer_name: str) -> list[tuple[str, nn.Module, int]]:
    """The parts of a layer that hold experts, with their number.

    They lie fused in three-dimensional parameters, as no dense part does.

    >>> import torch
    >>> experts = nn.ParameterDict({"up": torch.zeros(4, 6, 2), "router": torch.zeros(4, 2)})
    >>> [(name, count) for name, _, count in experts_in(nn.ModuleDict({"experts": experts}), "mlp")]
    [('mlp.experts', 4)]
    """
    found = []
    for name, module in layer.named_modules(prefix=layer_name):
        # A parameter that is to be broadcast may have dimensions of 1 in front.
        fused = [p.shape[0] for p in module.parameters(recurse=False) if p.ndim >= 3 and p.shape[0] > 1]
        if not isinstance(module, CONVOLUTIONS) and fused:
            found.append((str(name), module, fused[0]))
    return found
