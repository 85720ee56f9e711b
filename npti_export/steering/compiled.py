"""What a running forward hands to compiled code, which cannot ask for its slots without breaking the graph in two."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class Handed(threading.local):
    """The slots of the forward that this thread is in; written before it begins, read within.

    Compiled code reads them as it reads its input: nothing is baked in, so no switch compiles anything anew, and a CUDA
    graph gets them copied into its own memory. A context variable it could not read; that a thread runs one forward at
    a time makes this as good, tasks of asyncio included.

    Attributes:
        slots: Of every token, int64 [rows, tokens]; None where there is no forward, or it draws random numbers.
        activations: Gets an entry from every activation that reads them.
        outputs: The same of places of dense parts.
    """

    def __init__(self) -> None:
        self.slots: Tensor | None = None
        self.activations: list[None] = []
        self.outputs: list[None] = []


def handed_slots(handed: Handed | None, values: Tensor) -> Tensor | None:
    """The slots of an activation's tokens in compiled code; None where they have to be asked for.

    Args:
        handed: What the forward hands over.
        values: The activation, [rows, tokens, width] or [rows · tokens, width].
    """
    if handed is None or not torch.compiler.is_compiling() or handed.slots is None:
        return None
    slots = handed.slots.flatten() if values.ndim == 2 else handed.slots
    return slots.to(values.device)
