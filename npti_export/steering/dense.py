"""The dense part in a running model: a module's ``forward`` with the vector of the token's slot added to its output."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

from npti_export.steering.compiled import Handed, handed_slots
from npti_export.steering.output import OutputPlace
from npti_export.steering.override import Override
from npti_export.steering.positions import TokenSteering
from npti_export.steering.tables import SteeringTables


class SteeredOutput:
    """A module's ``forward`` on the instance, so that the module, its type and its names in a state dict stay.

    Args:
        place: Which module.
        tables: Those of its layer.
        steering_for: Says which slot each token of the running forward has; None where nothing is steered.
        handed: The same for compiled code.
    """

    def __init__(
        self,
        place: OutputPlace,
        tables: SteeringTables,
        steering_for: Callable[[Tensor], TokenSteering | None],
        handed: Handed,
    ) -> None:
        self.place = place
        self._there = True
        original = place.module.forward

        @wraps(original)
        def forward(*arguments: Any, **keywords: Any) -> Tensor:
            output: Tensor = original(*arguments, **keywords)
            slots_here = handed_slots(handed, output) if self._there else None
            if slots_here is not None and tables.residual is not None:
                handed.outputs.append(None)
                return output + tables.residual[slots_here].to(output)
            steering = steering_for(output) if self._there else None
            if steering is None or tables.residual is None:
                return output
            slots = steering.slots.to(output.device) if isinstance(steering.slots, Tensor) else steering.slots
            return output + tables.residual[slots].to(output)

        self._override = Override(place.module, "forward", forward)

    def remove(self) -> None:
        """Puts back what was there; where somebody keeps this ``forward`` it adds nothing any more."""
        self._there = False
        self._override.remove()
