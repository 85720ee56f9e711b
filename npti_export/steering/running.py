"""What a thread or task is in while a steered model runs: a forward of the decoder, a call of ``generate``."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from npti_export.steering.dial import InForce
from npti_export.steering.positions import GenerateCall, TokenSteering
from npti_export.steering.slots import Selection


@dataclass
class RunningForward:
    """A forward of the decoder that this thread or task is in.

    Args:
        outer: The one that it runs within, if any.
        steering: Which slot each token has; None where nothing is steered.
        flattened: The same for activations that run on flattened rows and tokens, once one has asked.
        shape: Number of rows and of tokens.
        slots: The slot of every token as data for compiled code, int64 [rows, tokens].
        activations: An entry for each activation that has asked.
        outputs: The same of places of dense parts.
    """

    outer: RunningForward | None
    steering: TokenSteering | None = None
    flattened: TokenSteering | None = None
    shape: tuple[int, int] = (0, 0)
    slots: Tensor | None = None
    activations: list[None] = field(default_factory=list)
    outputs: list[None] = field(default_factory=list)


@dataclass
class RunningGenerate:
    """A call of ``generate`` that this thread or task is in.

    Args:
        call: What its arguments say; None where they are not understood.
        ids: The ids that it has in hand for its next forward, those given and those generated, int64 [rows, tokens].
        faded: What a schedule of strengths has put in force for this call; held until it ends.
        dial: Whose schedule that is.
        begun: Whether it has run the model yet.
    """

    call: GenerateCall | None
    ids: Tensor | None = None
    faded: Selection | None = None
    dial: InForce | None = None
    begun: bool = False
