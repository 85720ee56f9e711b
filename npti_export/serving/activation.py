"""What stands in an activation's place in a served model: the gate's non-linearity, steered by each token's row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from npti_export.steering.tables import SteeringTables


class ServedActivation(nn.Module):
    """An activation whose every token has a personality of its own, in a model that a server compiles or captures.

    It branches on nothing and allocates nothing that a graph would not: rows, tables and their addresses stay.

    Args:
        function: The non-linearity of the gate; of an ungated layer, the whole activation.
        gated: Whether the input holds gate and up side by side, and the result is their product.
        tables: Caps and shifts of all rows.
        token_slots: The row of each token, int64 [at least tokens], written before every step.
    """

    cap: Tensor
    shift: Tensor
    token_slots: Tensor

    def __init__(
        self, function: Callable[[Tensor], Tensor], gated: bool, tables: SteeringTables, token_slots: Tensor
    ) -> None:
        super().__init__()
        self.function = function
        self.gated = gated
        self.register_buffer("cap", tables.cap, persistent=False)
        self.register_buffer("shift", tables.shift, persistent=False)
        self.register_buffer("token_slots", token_slots, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the non-linearity, moves it, and multiplies by the up half.

        Args:
            x: [tokens, 2 · width] if gated, else [tokens, width]; or the same with a dimension of 1 in front, which
                models have that vLLM takes from transformers.

        Returns:
            The activation, ``width`` wide.
        """
        slots = self.token_slots.narrow(0, 0, x.shape[-2])
        width = self.cap.shape[1]
        activation = self.function(x[..., :width])
        steered = torch.minimum(activation, self.cap[slots]) + self.shift[slots]
        return steered * x[..., width:] if self.gated else steered
