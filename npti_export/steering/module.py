"""What stands in an activation's place: the original, then ``minimum(a, cap) + shift`` of the token's slot."""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor, nn

from npti_export.steering.positions import TokenSteering
from npti_export.steering.tables import NEUTRAL_SHIFT, SteeringTables


class SteeredActivation(nn.Module):
    """An activation with a personality.

    The tables are plain attributes, no buffers, so a state dict has the same keys with and without steering.

    Args:
        original: The activation whose place this takes; it has no parameters.
        tables: Caps and shifts of all slots at this site.
        steering: Says, for the running thread or task, which slot each token of the running forward has; None where
            nothing is steered.
    """

    def __init__(self, original: nn.Module, tables: SteeringTables, steering: ContextVar[TokenSteering | None]) -> None:
        super().__init__()
        self.original = original
        self.tables = tables
        self.steering = steering

    def forward(self, gate: Tensor) -> Tensor:
        """Applies the original and moves the result; ``gate`` is [rows, tokens, width], the result likewise."""
        activation: Tensor = self.original(gate)
        steering = self.steering.get()
        if steering is None:
            return activation
        slots = steering.slots
        if isinstance(slots, Tensor):
            slots = slots.to(activation.device)
        shift = self.tables.shift[slots]
        if steering.dropout:
            kept = torch.rand_like(activation) >= steering.dropout
            shift = torch.where(kept, shift, shift.new_full((), NEUTRAL_SHIFT))
        return torch.minimum(activation, self.tables.cap[slots]) + shift
