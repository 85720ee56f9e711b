"""One place where a model's feed-forward neurons are: an activation, and how something else is put there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from npti_export.steering.experts import Experts
from npti_export.steering.functional import ClampedActivation, FunctionalActivation
from npti_export.steering.override import Override


@dataclass(frozen=True)
class Site:
    """The activation of one feed-forward layer, of the experts of a layer, or of the block that stands beside them.

    Args:
        layer: Number of the decoder layer, from 0.
        name: Dotted name of the activation module within the model.
        owner: The module that holds the activation.
        attribute: The activation's name within its owner.
        width: Number of neurons that its activation sees here; of experts, of each.
        gate: The linear map whose output the activation gets; of experts, the experts.
        gated: Whether a second wide map is multiplied in.
        dtype: Of the activation.
        device: Where it is computed.
        flat: Whether it runs on [rows · tokens, width], row by row, and not on [rows, tokens, width] (OPT).
        functional: The activation as a module, where the owner applies a function (LFM2, gpt-oss).
        experts: The experts of a mixture, whose activation runs on pairs of token and expert; None elsewhere.
        first: Number of its first neuron in the layer: other devices may hold others of it, and the neurons of experts
            come behind those of the block beside them.
        elsewhere: How many of its neurons other devices hold.
        weight: Name of the gate's weight.
    """

    layer: int
    name: str
    owner: nn.Module
    attribute: str
    width: int
    gate: nn.Module
    gated: bool
    dtype: torch.dtype
    device: torch.device
    flat: bool = False
    functional: FunctionalActivation | ClampedActivation | None = None
    experts: Experts | None = None
    first: int = 0
    elsewhere: int = 0
    weight: str = "weight"

    @property
    def shape(self) -> tuple[int, ...]:
        """How its neurons are numbered: [width], or [experts, width]."""
        return (self.width,) if self.experts is None else (self.experts.count, self.width)

    @property
    def neurons(self) -> int:
        """Number of neurons, those of all experts and those that other devices hold included."""
        return math.prod(self.shape) + self.elsewhere

    @property
    def activation(self) -> nn.Module:
        """The activation module as it stands there now, or would stand there in the place of a function."""
        return getattr(self.owner, self.attribute, self.functional)  # type: ignore[return-value]

    def put(self, activation: nn.Module) -> None:
        """Lets the owner apply this module from now on, in the place of its own or of the function that it calls."""
        setattr(self.owner, self.attribute, activation)
        if self.functional is not None:
            of_owner = self.functional.method_of(self.owner)
            self.functional.override = Override(self.owner, self.functional.method, of_owner)
        if self.experts is not None:
            self.experts.put()

    def put_back(self, original: nn.Module) -> None:
        """Takes out what was put, if it was: the original stands there again, or the owner calls its function again."""
        if self.experts is not None:
            self.experts.remove()
        if self.functional is None:
            setattr(self.owner, self.attribute, original)
            return
        if self.functional.override is not None:
            self.functional.override.remove()
        self.owner._modules.pop(self.attribute, None)

    def watch(self, hook: Callable[[nn.Module, Any, Tensor], None]) -> Watch:
        """Tells a forward hook of every call of the activation from now on.

        Args:
            hook: Called with the module, its arguments and its output, [rows, tokens, width] or as ``flat`` says; of
                experts as :class:`~npti_export.steering.experts.ExpertsCall` says, which ``experts.call()`` gives then.
        """
        handle = self.activation.register_forward_hook(hook)
        if self.functional is not None and self.attribute not in dict(self.owner.named_children()):
            self.put(self.functional)

            def remove() -> None:
                handle.remove()
                self.put_back(self.activation)

            return Watch(remove)
        if self.experts is None:
            return Watch(handle.remove)
        self.experts.put()

        def end() -> None:
            handle.remove()
            assert self.experts is not None
            self.experts.remove()

        return Watch(end)


@dataclass(frozen=True)
class Watch:
    """A hook on an activation.

    Args:
        remove: Ends it, and leaves the model as it was.
    """

    remove: Callable[[], None]
