"""An activation that a block applies by calling a function (LFM2, gpt-oss), as a module that can be steered."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from npti_export.steering.override import Override

ATTRIBUTE = "act_fn"
"""What the module is called within the block while it stands there."""

FUNCTIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2", "sigmoid", "tanh", "quick_gelu", "mish")
"""Functions, by transformers' names, of which the one that a block applies is told by its numbers."""


class FunctionalActivation(nn.Module):
    """The function of a block ``down(function(gate(x)) * up(x))``, with the names of that block's maps.

    Args:
        function: One of :data:`FUNCTIONS`.
        gate: Name of the map whose output goes through the function.
        up: Name of the map whose output the result is multiplied by.
        down: Name of the map back.
    """

    method = "forward"
    """What of the block is replaced, on the instance."""
    override: Override | None = None
    """It, while it is there."""

    def __init__(self, function: str, gate: str, up: str, down: str) -> None:
        super().__init__()
        self.function: nn.Module = ACT2FN[function]
        self.names = (gate, up, down)

    def forward(self, gate: Tensor) -> Tensor:
        """The function of the gate's output, [rows, tokens, width]."""
        activation: Tensor = self.function(gate)
        return activation

    def method_of(self, block: nn.Module) -> Callable[[Tensor], Tensor]:
        """A ``forward`` for the block, the same as its own but by way of the module that stands at ``act_fn``."""
        gate, up, down = self.names
        function = self  # what is left should somebody keep this forward when the module is gone

        def forward(self: nn.Module, hidden: Tensor) -> Tensor:
            activation = getattr(self, ATTRIBUTE, function)(getattr(self, gate)(hidden))
            out: Tensor = getattr(self, down)(activation * getattr(self, up)(hidden))
            return out

        return MethodType(forward, block)


class ClampedActivation(nn.Module):
    """What the experts of gpt-oss apply: ``x · sigmoid(alpha · x)`` of the gate, clamped from above.

    Args:
        alpha: Steepness of the sigmoid.
        limit: What the gate is clamped to from above, and the up map's output on both sides.
    """

    method = "_apply_gate"
    """What of the experts is replaced, on the instance."""
    override: Override | None = None
    """It, while it is there."""

    def __init__(self, alpha: float, limit: float) -> None:
        super().__init__()
        self.alpha, self.limit = alpha, limit

    def forward(self, gate: Tensor) -> Tensor:
        """The activation of the gate's output, [rows, width]."""
        gate = gate.clamp(max=self.limit)
        return gate * torch.sigmoid(gate * self.alpha)

    def method_of(self, experts: nn.Module) -> Callable[[Tensor], Tensor]:
        """An ``_apply_gate`` for the experts, the same as their own but by way of the module at ``act_fn``."""
        limit, function = self.limit, self

        def apply_gate(self: nn.Module, gate_up: Tensor) -> Tensor:
            gate, up = gate_up[..., ::2], gate_up[..., 1::2]
            activation: Tensor = getattr(self, ATTRIBUTE, function)(gate)
            return (up.clamp(min=-limit, max=limit) + 1) * activation

        return MethodType(apply_gate, experts)
