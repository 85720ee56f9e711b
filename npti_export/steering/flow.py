"""What went through feed-forward candidates in a one-token forward, and whether it is what equation 4 is about.

An activation is one if what leaves it, times the up map's output where there is one, is what the block goes on with.
That dismisses look-alikes, and it tells gate from up without a name.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import permutations
from threading import get_ident
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from npti_export.steering.feed_forward import Candidate, Wiring
from npti_export.steering.functional import ATTRIBUTE, FUNCTIONS, FunctionalActivation
from npti_export.steering.shares import share_of


@dataclass(frozen=True)
class Call:
    """First argument and output of one call of a module; None where these are no tensors."""

    given: Tensor | None
    output: Tensor | None


@dataclass(frozen=True)
class Proof:
    """What the data say of a candidate.

    Args:
        gate: Name of the map that the activation's input comes from.
        activation: What left the activation, [1, 1, width] or, where the block flattens rows and tokens, [1, width].
        functional: The activation as a module, where the block applies a function.
    """

    gate: str
    activation: Tensor
    functional: FunctionalActivation | None = None


class Flow(AbstractContextManager["Flow"]):
    """Records the calls of all blocks and of their parts within the block of code, those of this thread only.

    Args:
        found: Candidates of all layers.
    """

    def __init__(self, found: Iterable[Candidate]) -> None:
        blocks = [candidate.module for candidate in found]
        self._watched = dict.fromkeys([*blocks, *(child for block in blocks for child in block.children())])
        self._calls: dict[nn.Module, list[Call]] = {module: [] for module in self._watched}
        self._thread = get_ident()

    def __enter__(self) -> Flow:
        self._hooks = [module.register_forward_hook(self._saw) for module in self._watched]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _saw(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if get_ident() != self._thread:
            return
        given = arguments[0] if arguments else None
        self._calls[module].append(Call(*(value if isinstance(value, Tensor) else None for value in (given, output))))

    def prove(self, candidate: Candidate) -> Proof | str:
        """What is known of a candidate after the forward, or one sentence on why it is no feed-forward block."""
        return _proved_function(self, candidate) if candidate.activation is None else _proved_module(self, candidate)

    def calls(self, module: nn.Module) -> list[Call]:
        """The calls of a module, the first one first."""
        return self._calls[module]

    def output(self, candidate: Candidate, name: str) -> Tensor | None:
        """What a part of a block returned, if it was called once."""
        calls = self._calls[candidate.child(name)]
        return calls[0].output if len(calls) == 1 else None

    def goes_on_with(self, candidate: Candidate, value: Tensor, zeros_tell: bool = True) -> bool:
        """Whether a part of the block behind the activation was given this value, bit for bit.

        Args:
            candidate: The block.
            value: The value.
            zeros_tell: Whether nothing but zeros is evidence too, and not only the very same tensor.
        """
        before = (*candidate.wide, candidate.activation)
        parts = [part for name, part in candidate.module.named_children() if name not in before]
        given = [call.given for part in parts for call in self._calls[part]]
        if zeros_tell or bool(value.any()):
            return any(_same(tensor, value) for tensor in given)
        return any(tensor is value for tensor in given)


def _proved_module(flow: Flow, candidate: Candidate) -> Proof | str:
    name = f"{candidate.name}.{candidate.activation}"
    calls = flow.calls(candidate.child(str(candidate.activation)))
    widths = [call.given.shape[-1] for call in calls if call.given is not None]
    _, here = share_of(candidate.child(candidate.wide[0]), candidate.width)
    if widths not in ([candidate.width], [here]) or calls[0].given is None or calls[0].output is None:
        return (
            f"The activation {name} did not run as expected: one call on width {candidate.width} was expected in a "
            f"one-token forward, calls on widths {widths} were seen. Its block runs {_forward_of(candidate.module)}; "
            "if that is a kernel that goes round the activation, load the model without it."
        )
    given, activation = calls[0].given, calls[0].output
    if list(activation.shape) not in ([1, 1, *widths], [1, *widths]):
        return (
            f"The activation {name} runs on a tensor of shape {list(activation.shape)}; [rows, tokens, width] was "
            "expected, so that a token's row can be told."
        )
    if candidate.wiring is Wiring.PLAIN:
        # Of a look-alike (the gate of Gemma 3n's per-layer inputs) the next map gets a product, which may be zero too.
        if flow.goes_on_with(candidate, activation, zeros_tell=False):
            return Proof(candidate.wide[0], activation)
        return f"What leaves the activation {name} is not what the block's map back is given."
    if candidate.wiring is Wiring.FUSED:
        fused = flow.output(candidate, candidate.wide[0])
        halves = () if fused is None else fused.chunk(2, dim=-1)
        gates = [
            candidate.wide[0]
            for gate, up in permutations(halves)
            if _same(gate, given) and flow.goes_on_with(candidate, activation * up)
        ]
    else:
        gates = [
            gate
            for gate, up in permutations(candidate.wide)
            if (factor := flow.output(candidate, up)) is not None
            and factor.shape == activation.shape
            and flow.goes_on_with(candidate, activation * factor)
        ]
        if len(gates) > 1:  # a product of zeros fits both
            gates = [gate for gate in gates if flow.output(candidate, gate) is given]
    if len(gates) != 1:
        return f"The block of the activation {name} does not go on with the activation times another map's output."
    return Proof(gates[0], activation)


def _proved_function(flow: Flow, candidate: Candidate) -> Proof | str:
    """Which function of which map, told by trying them all; the block's new forward must return what its own did."""
    calls = flow.calls(candidate.module)
    if len(calls) != 1 or calls[0].given is None or "forward" in vars(candidate.module):
        return (
            f"The feed-forward block {candidate.name} ({type(candidate.module).__name__}) has no activation module and "
            f"was not called once by its own forward. It runs {_forward_of(candidate.module)}; if that is a kernel, "
            "load the model without it."
        )
    if hasattr(candidate.module, ATTRIBUTE):
        return (
            f"The feed-forward block {candidate.name} ({type(candidate.module).__name__}) has no activation module "
            f"and holds something else as {ATTRIBUTE}, where one has to be put; make it a module, as torch.nn.SiLU()."
        )
    for gate, up in permutations(candidate.wide):
        given, factor = flow.output(candidate, gate), flow.output(candidate, up)
        if given is None or factor is None or given.shape != factor.shape or given.ndim != 3:
            continue
        for function in FUNCTIONS:
            activation = FunctionalActivation(function, gate, up, candidate.narrow)
            value = activation(given)
            if not flow.goes_on_with(candidate, value * factor):
                continue
            narrow = candidate.child(candidate.narrow)
            if _same(narrow(value * factor), calls[0].output):
                return Proof(gate, value, activation)
    return (
        f"The feed-forward block {candidate.name} ({type(candidate.module).__name__}) has no activation module, and "
        f"what it computes is none of {', '.join(FUNCTIONS)} of one map times the other."
    )


def _forward_of(block: nn.Module) -> str:
    """What a block runs when it is called, by name; kernels replace the forward of the instance or of the class."""
    forward = vars(block).get("forward", type(block).forward)
    return f"{getattr(forward, '__module__', '?')}.{getattr(forward, '__qualname__', repr(forward))}"


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Bit for bit, signs of zero aside."""
    if one is None or other is None or one.dtype != other.dtype or one.device != other.device:
        return False
    return torch.equal(one, other)
