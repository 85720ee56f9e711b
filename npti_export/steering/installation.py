"""The tables' place in a running model: put in, told of every forward and every ``generate``, proved, taken out."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from npti_export.errors import NptiError
from npti_export.steering.module import SteeredActivation
from npti_export.steering.positions import (
    GenerateCall,
    TokenSteering,
    check_rows,
    first_steered,
    forward_span,
    generate_call_of,
    token_slots,
)
from npti_export.steering.sites import Site, decoder_of, one_token_forward
from npti_export.steering.slots import Selection
from npti_export.steering.tables import SteeringTables


@dataclass
class _RunningForward:
    """A forward of the decoder that this thread or task is in.

    Args:
        outer: The one that it runs within, if any.
        steering: Which slot each token has; None where nothing is steered.
        reached: Whether an activation has asked.
    """

    outer: _RunningForward | None
    steering: TokenSteering | None = None
    reached: bool = False


class Installation:
    """The tables in a model. What runs now is kept by thread and task, so that they do not disturb each other.

    Args:
        model: The model.
        sites: Its activations.
        tables: One for each of them.
        current: Gives the personalities in force in the thread or task that asks.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        tables: Sequence[SteeringTables],
        current: Callable[[], Selection],
    ) -> None:
        # The hooks are on the module that holds the layers, so that no call of an inner module goes round them.
        decoder = decoder_of(model)
        self._signature = inspect.signature(decoder.forward)
        self._model = model
        self._current = current
        self._device = sites[0].device
        self._flat = sites[0].flat
        self._forward: ContextVar[_RunningForward | None] = ContextVar("npti_forward", default=None)
        self._generate_call: ContextVar[GenerateCall | None] = ContextVar("npti_generate_call", default=None)
        self._warned = False
        self._originals = [(site, site.activation) for site in sites]
        for (site, original), own in zip(self._originals, tables, strict=True):
            site.put(SteeredActivation(original, own, self.steering_for))
        self._hooks = [
            decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            decoder.register_forward_hook(self._after_forward, always_call=True),
        ]
        # A wrapper hands `generate` on to the module within: each records, and the innermost has the last word.
        self._generating = [module for module in model.modules() if hasattr(module, "generate")]
        self._own_generate = [module.__dict__.get("generate") for module in self._generating]
        for module in self._generating:
            module.__dict__["generate"] = self._recording(module.generate)  # type: ignore[arg-type]

    def remove(self) -> None:
        """Puts the very objects back that were there."""
        for site, original in self._originals:
            site.put_back(original)
        for hook in self._hooks:
            hook.remove()
        for module, own in zip(self._generating, self._own_generate, strict=True):
            module.__dict__.pop("generate", None)
            if own is not None:
                module.__dict__["generate"] = own

    def prove(self) -> None:
        """One token through the installed modules; each must be called, or steering would silently do nothing."""
        announced: dict[str, bool] = {}

        def saw(name: str) -> Callable[..., None]:
            return lambda *_: announced.update({name: self._forward.get() is not None})

        hooks = [site.activation.register_forward_hook(saw(site.name)) for site, _ in self._originals]
        try:
            one_token_forward(self._model)
        finally:
            for hook in hooks:
                hook.remove()
        for site, _ in self._originals:
            if site.name not in announced:
                raise NptiError(f"The activation {site.name} was replaced but not called; the model goes round it.")
            if not announced[site.name]:
                raise NptiError(f"The activation {site.name} runs without a call of the module that holds its layers.")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def steering_for(self, gate: Tensor) -> TokenSteering | None:
        """Which slot each token of the running forward has, as an activation asks it; not baked in by a compiler."""
        forward = self._forward.get()
        if forward is None:  # a layer on its own, as gradient checkpointing calls it: a plain forward of its tokens
            if not self._flat:
                return self._decide(int(gate.shape[0]), 0, int(gate.shape[1]), None)
            if len(self._current().slots) > 1:
                raise NptiError(
                    "A layer was called on its own, on tokens whose rows cannot be told; set one personality for all."
                )
            return self._decide(1, 0, int(gate.shape[0]), None)
        forward.reached = True
        return forward.steering

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_forward(self, _decoder: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        forward = _RunningForward(self._forward.get())
        self._forward.set(forward)
        if any(self._current().slots):
            given = self._signature.bind_partial(*arguments, **keywords).arguments
            forward.steering = self._decide(*forward_span(given), self._generate_call.get())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_forward(self, _decoder: nn.Module, _arguments: Any, output: Any) -> None:
        forward = self._forward.get()
        if forward is None:  # another hook refused the forward before it reached ours
            return
        self._forward.set(forward.outer)
        if output is not None and forward.steering is not None and not forward.reached:
            raise NptiError(
                f"No activation of {type(self._model).__name__} was called in this forward, so nothing was steered: "
                "its feed-forward layers were replaced after the personality was loaded; unload it and load it again."
            )

    def _decide(self, rows: int, first: int, length: int, call: GenerateCall | None) -> TokenSteering | None:
        current = self._current()
        if not any(current.slots):
            return None
        check_rows(len(current.slots), rows, call)
        start = first_steered(current.positions, call)
        if start is None and not self._warned:
            self._warned = True
            warnings.warn(
                "A plain forward has no generated positions, so nothing is steered in it; use generate, or load with "
                "positions='all'.",
                UserWarning,
                stacklevel=3,
            )
        slots = token_slots(list(current.slots), rows, first, length, start, self._device)
        if self._flat and isinstance(slots, Tensor):
            slots = slots.expand(rows, length).flatten()
        return None if slots is None else TokenSteering(slots, current.dropout)

    def _recording(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """``generate`` that records, for the thread or task that calls it, how many rows it has and of what length."""

        @wraps(generate)
        def recorded(*arguments: Any, **keywords: Any) -> Any:
            token = self._generate_call.set(generate_call_of(arguments, keywords))
            try:
                return generate(*arguments, **keywords)
            finally:
                self._generate_call.reset(token)

        return recorded

    def __reduce__(self) -> NoReturn:
        # A copy's `generate` would be that of the model it was copied from.
        raise NptiError("A model that carries a personality cannot be copied or pickled; .unload() it first.")
