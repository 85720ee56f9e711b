"""The experts of a mixture in a one-token forward: where their activation sits, and whether its rows are those told.

A row of the activation must be what the expert that it is said to belong to makes of the token: one half of that
expert's own map, by the numbers. So an order of rows that is not understood is refused, and a map that is no gate too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import get_ident
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from npti_export.steering.experts import Experts
from npti_export.steering.feed_forward import activations_in
from npti_export.steering.functional import ATTRIBUTE, ClampedActivation
from npti_export.steering.override import Override

NEAR = 0.05
"""How far a row may lie from what is expected, in parts of it: bfloat16 rounds by less than .01, and the gate of
another expert, or the other half of the map, lies as far away as it is large."""


@dataclass(frozen=True)
class ExpertsProof:
    """What the data say of the experts of one layer.

    Args:
        attribute: The activation's name within the experts.
        weight: Name of the parameter that holds the maps whose output the activation gets.
        gated: Whether another half of that output is multiplied in.
        activation: What left the activation in its first call.
        functional: The activation as a module, where the experts apply a function.
    """

    attribute: str
    weight: str
    gated: bool
    activation: Tensor
    functional: ClampedActivation | None = None


class ExpertsFlow(AbstractContextManager["ExpertsFlow"]):
    """Watches the experts of all layers within the block of code, in this thread only.

    Args:
        found: The experts.
    """

    def __init__(self, found: Iterable[Experts]) -> None:
        self._experts = list(found)
        self._thread = get_ident()
        self._said: dict[nn.Module, ExpertsProof | str] = {}
        self._put_back: list[Callable[[], None]] = []

    def __enter__(self) -> ExpertsFlow:
        for experts in self._experts:
            experts.put()
            self._put_back.append(experts.remove)
            self._watch(experts)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for put_back in reversed(self._put_back):
            put_back()

    def prove(self, experts: Experts) -> ExpertsProof | str:
        """What is known of the experts after the forward, or one sentence on why they cannot be steered."""
        forward = vars(experts.module).get("forward", type(experts.module).forward)
        runs = f"{getattr(forward, '__module__', '?')}.{getattr(forward, '__qualname__', repr(forward))}"
        return self._said.get(
            experts.module,
            f"The experts {experts.name} ({type(experts.module).__name__}) called no activation in a one-token "
            f"forward. They run {runs}; if that, or their block's, is a kernel, load the model without it.",
        )

    def _watch(self, experts: Experts) -> None:
        names = activations_in(experts.module)
        for name in names:
            hook = experts.module.get_submodule(name).register_forward_hook(self._saw(experts, name))
            self._put_back.append(hook.remove)
        if not names and hasattr(experts.module, ClampedActivation.method):
            self._watch_method(experts)

    def _saw(self, experts: Experts, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def saw(_activation: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if get_ident() != self._thread:
                return
            if len(arguments) != 1 or not isinstance(arguments[0], Tensor) or arguments[0].shape != output.shape:
                self._say(experts, f"The activation {experts.name}.{name} is no function of the gate alone.")
                return
            weight = _map_of(experts, arguments[0], whole=False)
            if isinstance(weight, str):
                self._say(experts, weight)
            else:
                self._say(experts, ExpertsProof(name, *weight, output))

        return saw

    def _watch_method(self, experts: Experts) -> None:
        """``_apply_gate`` recorded; its own must return what the activation as a module, times the other half, does."""
        module, name = experts.module, ClampedActivation.method
        original = getattr(module, name)

        def recorded(gate_up: Tensor) -> Tensor:
            output: Tensor = original(gate_up)
            if get_ident() == self._thread:
                self._say(experts, _proved_method(experts, gate_up, output))
            return output

        self._put_back.append(Override(module, name, recorded).remove)

    def _say(self, experts: Experts, said: ExpertsProof | str) -> None:
        """The first call's proof, and any call's objection."""
        if isinstance(said, str) or experts.module not in self._said:
            self._said[experts.module] = said


def _proved_method(experts: Experts, gate_up: Tensor, output: Tensor) -> ExpertsProof | str:
    alpha, limit = (getattr(experts.module, name, None) for name in ("alpha", "limit"))
    wrong = (
        f"The experts {experts.name} ({type(experts.module).__name__}) have no activation module, and what they apply "
        "is not that of gpt-oss, the only one that is known."
    )
    if not isinstance(alpha, float) or not isinstance(limit, int | float) or ATTRIBUTE in vars(experts.module):
        return wrong
    functional = ClampedActivation(alpha, limit)
    activation = functional(gate_up[..., ::2])
    apart = nn.Module()
    setattr(apart, ATTRIBUTE, functional)
    if not torch.equal(functional.method_of(apart)(gate_up), output):
        return wrong
    weight = _map_of(experts, gate_up, whole=True)
    return weight if isinstance(weight, str) else ExpertsProof(ATTRIBUTE, *weight, activation, functional)


def _map_of(experts: Experts, given: Tensor, whole: bool) -> tuple[str, bool] | str:
    """The parameter whose maps gave an activation its rows, and whether they have another half.

    Args:
        experts: The experts, which are running.
        given: What the activation got, [..., width].
        whole: Whether that is all of the maps' output, and not the gate's half of it.
    """
    call = experts.call()
    expert, token = call.rows(given.shape)
    expert, token = (of.flatten() for of in torch.broadcast_tensors(expert, token))  # type: ignore[no-untyped-call]
    inputs = call.inputs(expert, token)
    given = given.flatten(0, -2)
    for name, weight in experts.module.named_parameters(recurse=False):
        if weight.ndim != 3:
            continue
        if not weight.is_floating_point() or weight.itemsize < 2:
            return f"The experts {experts.name} are quantised ({weight.dtype}), which is not steered in this release."
        for maps in (weight, weight.transpose(1, 2)):
            wide = maps.shape[1] in ((given.shape[1],) if whole else (given.shape[1], 2 * given.shape[1]))
            if not wide or maps.shape[2] != inputs.shape[1]:
                continue
            gated = whole or maps.shape[1] == 2 * given.shape[1]
            if all(_is_of(experts, maps[e], int(e), x, row) for e, x, row in zip(expert, inputs, given, strict=True)):
                return name, gated
    return (
        f"The activation of the experts {experts.name} does not get what the experts that its tokens were routed to "
        f"make of them (experts run by {call.implementation!r}); load the model without what changes them."
    )


def _is_of(experts: Experts, expert_map: Tensor, expert: int, x: Tensor, row: Tensor) -> bool:
    """Whether a row is what an expert's map makes of a token, or one half of that."""
    out = expert_map @ x.to(expert_map.dtype)
    for bias in experts.module.parameters(recurse=False):
        if bias.shape == (experts.count, len(out)):
            out = out + bias[expert]
    return any(_near(row, part) for part in _parts(out, len(row)))


def _parts(out: Tensor, width: int) -> Iterator[Tensor]:
    """All of a map's output, or its halves, stored one behind the other or by turns."""
    if len(out) == width:
        yield out
    else:
        yield from (out[:width], out[width:], out[::2], out[1::2])


def _near(one: Tensor, other: Tensor) -> bool:
    one, other = one.double(), other.double()
    return bool((one - other).norm() <= NEAR * other.norm())
