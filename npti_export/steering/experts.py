"""A call of a mixture's experts: which expert and which token each row of their activation belongs to.

The experts of a layer lie fused in three-dimensional parameters, and their activation sees rows of (token, expert)
pairs. In which order is told by what the experts were called with and by the way in which transformers runs them, which
may change between two forwards (on a GPU ``generate`` decodes by ``batched_mm`` where the prompt went by
``grouped_mm``), so it is asked at every call and never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from npti_export.errors import NptiError
from npti_export.steering.override import Override
from npti_export.steering.positions import TokenSteering

BATCHED, GROUPED, EAGER, ALL = "batched_mm", "grouped_mm", "eager", "all"
"""How experts run: one product a pair, in the pairs' order; the pairs sorted by expert; one expert after the other,
each on its own pairs; every expert on every token (Llama 4, which multiplies what is not routed by 0 beforehand)."""


@dataclass
class ExpertsCall:
    """One call of the experts of a layer.

    Args:
        name: Their name within the model, for messages.
        experts: How many they are.
        hidden: What they are given, [tokens, hidden]; where every expert runs on every token, [experts · tokens,
            hidden].
        indices: The experts that each token was routed to, int64 [tokens, k]; None where every expert runs on every
            token.
        implementation: How they run.
        activations: How many calls of the activation were told their rows.
        steering: How the tokens are steered, as soon as it was asked for; None where they are not.
        asked: Whether it was.
    """

    name: str
    experts: int
    hidden: Tensor
    indices: Tensor | None
    implementation: str
    activations: int = 0
    steering: TokenSteering | None = None
    asked: bool = False

    @property
    def of_tokens(self) -> Tensor:
        """What stands for the tokens, each once, [tokens, hidden]."""
        return self.hidden if self.indices is not None else self.hidden[: len(self.hidden) // self.experts]

    def inputs(self, expert: Tensor, token: Tensor) -> Tensor:
        """What the experts were given for these pairs, [..., hidden]."""
        if self.indices is not None:
            return self.hidden[token]
        return self.hidden.view(self.experts, -1, self.hidden.shape[-1])[expert, token]

    def rows(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Expert and token of each row of the activation's next call, in the order of the calls.

        Args:
            shape: Of the activation, [pairs, width], or [experts, tokens, width] where every expert runs on every
                token.

        Returns:
            Two tensors int64 that broadcast to the shape without its width.

        Raises:
            NptiError: If the rows are not those of the call, so that it cannot be told.
        """
        expert, token = self._rows()
        self.activations += 1
        expected = torch.broadcast_tensors(expert, token)[0].shape  # type: ignore[no-untyped-call]
        if tuple(expected) != tuple(shape[:-1]):
            raise NptiError(
                f"The experts {self.name} gave their activation {list(shape[:-1])} rows, {list(expected)} were "
                f"expected of experts run by {self.implementation!r}; set_experts_implementation('grouped_mm')."
            )
        return expert, token

    def pairs(self, activation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The routed pairs of the activation's next call: expert and token, int64 [pairs], and [pairs, width].

        Args:
            activation: What left it.
        """
        rows = self.rows(activation.shape)
        expert, token = (of.expand(activation.shape[:-1]).flatten() for of in rows)
        values = activation.flatten(0, -2)
        if self.indices is not None:
            return expert, token, values
        # What a token is not routed to gets it times a sigmoid of minus infinity, and nothing else of it is 0 all over.
        there = self.inputs(expert, token).any(-1)
        return expert[there], token[there], values[there]

    def _rows(self) -> tuple[Tensor, Tensor]:
        device, tokens = self.hidden.device, len(self.of_tokens)
        if self.indices is None:
            return torch.arange(self.experts, device=device)[:, None], torch.arange(tokens, device=device)[None, :]
        k = self.indices.shape[1]
        if self.implementation == BATCHED:
            return self.indices.reshape(-1), torch.arange(tokens * k, device=device) // k
        if self.implementation == GROUPED:
            # The very call that transformers makes: it is not stable, but the same on the same numbers.
            expert, order = torch.sort(self.indices.reshape(-1))
            return expert, order // k
        hit = torch.unique(self.indices)
        if self.activations >= len(hit):
            raise NptiError(f"The experts {self.name} called their activation more often than experts were hit.")
        expert = hit[self.activations]
        _, token = torch.where(expert == self.indices.T)
        return expert.expand(len(token)), token


_running: ContextVar[ExpertsCall | None] = ContextVar("npti_experts_call", default=None)
"""The call that this thread or task is in; experts hold no experts."""


class Experts:
    """The experts of one layer, with a ``forward`` on the instance that tells of every call while it is put there.

    Args:
        name: Their dotted name within the model.
        module: The module that holds them.
        count: How many they are.
    """

    def __init__(self, name: str, module: nn.Module, count: int) -> None:
        self.name, self.module, self.count = name, module, count
        self._there = False
        self._override: Override | None = None

    def put(self) -> None:
        """Tells of every call from now on."""
        self._there = True
        original = self.module.forward

        @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
        @wraps(original)
        def forward(*arguments: Any, **keywords: Any) -> Any:
            call = _running.set(self._call_of(arguments, keywords) if self._there else None)
            try:
                return original(*arguments, **keywords)
            finally:
                _running.reset(call)

        self._override = Override(self.module, "forward", forward)

    def remove(self) -> None:
        """Puts back what was there; this one tells of nothing any more where somebody keeps it."""
        self._there = False
        if self._override is not None:
            self._override.remove()

    def call(self) -> ExpertsCall:
        """The call that this thread or task is in.

        Raises:
            NptiError: If their activation was called by something else.
        """
        call = _running.get()
        if call is None:
            raise NptiError(f"The activation of the experts {self.name} was called by something else than the experts.")
        return call

    def _call_of(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> ExpertsCall:
        """What the experts are called with, told by dtype and shape: the routed experts are whole numbers."""
        tensors = [value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)]
        floats = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.ndim == 2]
        if not floats:
            raise NptiError(f"The experts {self.name} were called without tokens [tokens, hidden].")
        hidden = floats[0]
        if getattr(self.module, "_is_expert_parallel", False):
            raise NptiError(
                f"The experts {self.name} are spread over several devices, which is not steered in this release; load "
                "the model without expert parallelism."
            )
        indices = [t for t in tensors if t.dtype in (torch.int64, torch.int32) and t.ndim == 2]
        if not indices:
            if len(hidden) % self.count:
                raise NptiError(f"The experts {self.name} were not told which tokens are theirs.")
            return ExpertsCall(self.name, self.count, hidden, None, ALL)
        return ExpertsCall(self.name, self.count, hidden, indices[0], self._implementation())

    def _implementation(self) -> str:
        """How transformers runs them now."""
        config = getattr(self.module, "config", None)
        name = getattr(config, "_experts_implementation", None) if hasattr(self.module, "has_gate") else None
        if name in (None, EAGER, BATCHED, GROUPED):
            return name or EAGER
        raise NptiError(
            f"The experts {self.name} are run by {name!r}, a kernel that goes round their activation or does not say "
            "which token a row belongs to; model.set_experts_implementation('grouped_mm')."
        )


@dataclass(frozen=True)
class PairSteering:
    """How a running call of experts is steered.

    Args:
        slots: Slot and expert of each row of the activation, which index the tables together.
        dropout: Share of shifts that are dropped at random.
    """

    slots: tuple[Tensor, Tensor]
    dropout: float


@torch.compiler.disable  # type: ignore[untyped-decorator]
def expert_steering(
    experts: Experts, steering_for: Callable[[Tensor], TokenSteering | None], gate: Tensor
) -> PairSteering | None:
    """Which slot and which expert each row of a running activation has; None where nothing is steered.

    Args:
        experts: The experts whose activation asks.
        steering_for: Says which slot each token has, once a call of the experts.
        gate: What the activation is given.
    """
    call = experts.call()
    if not call.asked:
        call.asked, call.steering = True, steering_for(call.of_tokens)
    if call.steering is None:
        return None
    expert, token = call.rows(gate.shape)
    slots = call.steering.slots
    if isinstance(slots, Tensor):
        slots = slots.to(gate.device).expand(len(call.of_tokens))[token]
    else:  # as data, because compiled code would take a number for a constant and be compiled anew at a switch
        slots = torch.full((), slots, device=gate.device)
    return PairSteering((slots, expert), call.steering.dropout)
