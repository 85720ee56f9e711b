"""What stands in an activation's place: the original, then ``minimum(a, cap) + shift`` of the token's slot."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from npti_export.errors import NptiError
from npti_export.steering.compiled import Handed, handed_slots
from npti_export.steering.experts import PairSteering
from npti_export.steering.positions import TokenSteering
from npti_export.steering.tables import NEUTRAL_SHIFT, SteeringTables


class SteeredActivation(nn.Module):
    """An activation with a personality.

    A state dict has the same keys with and without steering: the tables are plain attributes, no buffers, and what the
    original has of parameters (Apertus' xIELU has two) stands here under the same names, the very same dictionaries.

    Args:
        original: The activation whose place this takes.
        tables: Caps and shifts of all slots at this site.
        steering_for: Says which slot each token of the running forward has, of experts slot and expert of each row;
            None where nothing is steered.
        handed: The same for compiled code; None where it has to ask.
    """

    def __init__(
        self,
        original: nn.Module,
        tables: SteeringTables,
        steering_for: Callable[[Tensor], TokenSteering | PairSteering | None],
        handed: Handed | None = None,
    ) -> None:
        super().__init__()
        self.original: nn.Module
        self._parameters = original._parameters
        self._buffers = original._buffers
        self._non_persistent_buffers_set = original._non_persistent_buffers_set
        self._modules = original._modules
        vars(self)["original"] = original  # no part of this one, or its name would enter the keys
        self.tables = tables
        self.steering_for = steering_for
        self.handed = handed
        self.train(original.training)

    def forward(self, gate: Tensor) -> Tensor:
        """Applies the original and moves the result; ``gate`` is [rows, tokens, width], the result likewise."""
        activation: Tensor = self.original(gate)
        slots_here = handed_slots(self.handed, activation)
        if slots_here is not None and self.handed is not None:
            self.handed.activations.append(None)
            cap, shift = self.tables.cap[slots_here], self.tables.shift[slots_here]
            return torch.minimum(activation, cap.to(activation.dtype)) + shift.to(activation.dtype)
        steering = self.steering_for(gate)
        if steering is None:
            return activation
        slots = steering.slots
        if isinstance(slots, Tensor):
            slots = slots.to(activation.device)
        # The tables have the activation's dtype already, except under autocast, which must not be widened here.
        cap = self.tables.cap[slots].to(activation.dtype)
        shift = self.tables.shift[slots].to(activation.dtype)
        if activation.requires_grad:  # the backward pass needs it as it is, whatever is written there till then
            cap = cap.clone()
        if steering.dropout:
            kept = torch.rand(activation.shape, device=activation.device) >= steering.dropout
            shift = torch.where(kept, shift, shift.new_full((), NEUTRAL_SHIFT))
        return torch.minimum(activation, cap) + shift

    def train(self, mode: bool = True) -> SteeredActivation:
        """Sets the original's mode too."""
        super().train(mode)
        self.original.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SteeredActivation:
        """Moves the tables along when the model is moved to another device or dtype."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.tables.apply(fn)
        return self


def check_unsteered(model: nn.Module) -> None:
    """Refuses a model that carries a personality already.

    Raises:
        NptiError: If it does.
    """
    if any(isinstance(module, SteeredActivation) for module in model.modules()):
        raise NptiError("The model carries a personality already; switch it with .set(…), or .unload() it first.")
