"""An activation that a feed-forward block applies by calling a function (LFM2), as a module that can be steered."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

from torch import Tensor, nn
from transformers.activations import ACT2FN

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

    def __init__(self, function: str, gate: str, up: str, down: str) -> None:
        super().__init__()
        self.function: nn.Module = ACT2FN[function]
        self.names = (gate, up, down)

    def forward(self, gate: Tensor) -> Tensor:
        """The function of the gate's output, [rows, tokens, width]."""
        activation: Tensor = self.function(gate)
        return activation

    def forward_of(self, block: nn.Module) -> Callable[[Tensor], Tensor]:
        """A ``forward`` for the block, the same as its own but by way of the module that stands at ``act_fn``."""
        gate, up, down = self.names

        def forward(self: nn.Module, hidden: Tensor) -> Tensor:
            activation = getattr(self, ATTRIBUTE)(getattr(self, gate)(hidden))
            out: Tensor = getattr(self, down)(activation * getattr(self, up)(hidden))
            return out

        return MethodType(forward, block)
