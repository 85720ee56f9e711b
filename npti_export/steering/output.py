"""Where a layer's feed-forward block goes into the residual stream: the last module before that addition.

Found by what it does, not by name: of the modules that run behind the activation, the one is wanted whose output, moved
by a vector, moves the layer's output by the same vector. That is the map back, or a norm behind it (Gemma 2, OLMo 2),
or the block itself where it scales what the map back returns (Falcon-H1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.steering.sites import Site, decoder_layers, one_token_forward

ROUNDINGS = 4
"""By how many units in the last place a sum of a few terms may be off."""


@dataclass(frozen=True)
class OutputPlace:
    """A module whose output is added to the residual stream behind a feed-forward block.

    Args:
        layer: Number of the decoder layer, from 0.
        name: Dotted name of the module within the model.
        module: The module.
        hidden: Width of the residual stream.
        scale: What its output is multiplied by on the way there (Granite's residual multiplier), 1 almost everywhere.
        dtype: Of its output.
        device: Where that is computed.
    """

    layer: int
    name: str
    module: nn.Module
    hidden: int
    scale: float
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Probe:
    """A vector of large numbers of random sign, beside which everything else is lost in rounding.

    Args:
        size: Of each number.
        signs: 1 and -1, float64 [hidden].
    """

    size: float
    signs: Tensor

    @classmethod
    def beside(cls, stream: Tensor) -> Probe | None:
        """One that is large beside a residual stream of one token; None where the stream is not finite."""
        peak = float(stream.abs().max())
        if not math.isfinite(peak):
            return None
        size = 2.0 ** min(14, 4 + max(0, math.ceil(math.log2(peak or 1.0))))  # float16 ends at 2 ** 16
        random = torch.Generator().manual_seed(0)
        return cls(size, torch.randint(0, 2, stream.shape[-1:], generator=random).double() * 2 - 1)

    def moved(self, output: Tensor) -> Tensor:
        """A module's output with the vector added."""
        return output + (self.size * self.signs).to(output)

    def scale(self, stream: Tensor, moved: Tensor, layer: nn.Module) -> float | None:
        """What the vector was multiplied by until it was part of the residual stream; None if it was not added to it.

        Args:
            stream: The residual stream behind the layer, one token's.
            moved: The same after a module's output in the layer was moved.
            layer: The layer, which knows the exact number.
        """
        peak = float(stream.abs().max())
        difference = (moved.double() - stream.double()).flatten().cpu()
        precision = ROUNDINGS * torch.finfo(stream.dtype).eps
        scale = float((difference * self.signs).mean()) / self.size
        lost = precision * (stream.double().abs().flatten().cpu() + self.size)
        if abs(scale) <= precision or not bool(((difference - scale * self.size * self.signs).abs() <= lost).all()):
            return None
        # The number itself is known to the layer; what was measured is rounded.
        numbers = [value for part in layer.modules() for value in vars(part).values() if isinstance(value, float)]
        nearest = min([1.0, *numbers], key=lambda number: abs(number - scale))
        return nearest if abs(nearest - scale) <= precision * (1 + peak / self.size) else None


@dataclass
class _LayerRun:
    """One call of a layer, recorded, so that it can be made again with a module's output moved.

    Args:
        layer: The decoder layer.
        arguments: What it was called with, by place and by name; None as long as it was not called.
        output: The residual stream behind it, [1, 1, hidden].
        ran: Name, module and output of what was called beside the activation, in the order in which the calls ended.
        gate_ended: How many of them had ended when the gate's map had.
    """

    layer: nn.Module
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    output: Tensor | None = None
    ran: list[tuple[str, nn.Module, Any]] = field(default_factory=list)
    gate_ended: int = 0


def find_outputs(model: nn.Module, sites: Sequence[Site], adapter: PersonalityAdapter) -> dict[int, OutputPlace]:
    """The places where an adapter's dense parts are added, each proved by moving it in a one-token forward.

    Args:
        model: A transformers model.
        sites: Its sites, from :func:`npti_export.steering.sites.find_sites`.
        adapter: Its poles of the methods ``residual`` and ``hybrid`` say which layers are concerned.

    Returns:
        The place of every layer concerned, by the layer's number; empty for an adapter without a dense part.

    Raises:
        NptiError: If a layer has no such place, or the residual stream is not as wide as the adapter's vectors.
    """
    records = [record for trait in adapter.traits.values() for record in trait.poles.values()]
    dense = [record.residual for record in records if record.residual is not None]
    concerned = sorted({int(layer) for residual in dense for layer in residual.layer})
    if not concerned:
        return {}
    name, layers = decoder_layers(model)
    runs = {number: _LayerRun(layers[number]) for number in concerned}
    of_layer = {site.layer: site for site in sites}  # of a mixture that of its experts, which comes last
    hooks = [hook for number, run in runs.items() for hook in _record(run, of_layer[number])]
    try:
        one_token_forward(model)
    finally:
        for hook in hooks:
            hook.remove()
    # Layers are run again one by one; some draw random numbers.
    cuda = [site.device for site in sites if site.device.type == "cuda"]
    with torch.no_grad(), torch.random.fork_rng(devices=cuda):
        places = {number: _place(model, f"{name}.{number}", of_layer[number], run) for number, run in runs.items()}
    for place in places.values():
        if place.hidden != dense[0].hidden:
            raise NptiError(
                f"The adapter's residual vectors are {dense[0].hidden} wide and the residual stream of "
                f"{type(model).__name__} is {place.hidden}; the adapter was made for another model."
            )
    return places


def _record(run: _LayerRun, site: Site) -> list[Any]:
    """Hooks that fill a run, on the layer and on the parts of every module from it down to the activation's owner."""
    path = [""]
    for part in _name_within(run.layer, site.owner).split("."):
        path.append(f"{path[-1]}.{part}".strip("."))
    parts = {
        f"{parent}.{name}".lstrip("."): child
        for parent in dict.fromkeys(path)
        for name, child in run.layer.get_submodule(parent).named_children()
    }

    here = get_ident()  # another thread may be in the middle of a forward

    def before(_layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if get_ident() == here:
            run.arguments = arguments, dict(keywords)

    def after(_layer: nn.Module, _arguments: Any, output: Any) -> None:
        if get_ident() == here:
            run.output = _stream(output)

    def ended(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def append(module: nn.Module, _arguments: Any, output: Any) -> None:
            if get_ident() == here:
                run.ran.append((name, module, output))

        return append

    def gate_ended(*_: Any) -> None:
        if get_ident() == here:
            run.gate_ended = len(run.ran)

    # What ends after experts have begun lies behind or beside them, they themselves included (gpt-oss).
    on_gate = site.gate.register_forward_hook if site.experts is None else site.gate.register_forward_pre_hook
    return [
        run.layer.register_forward_pre_hook(before, with_kwargs=True),
        run.layer.register_forward_hook(after),
        *(child.register_forward_hook(ended(name)) for name, child in parts.items()),
        on_gate(gate_ended),
    ]


def _place(model: nn.Module, layer_name: str, site: Site, run: _LayerRun) -> OutputPlace:
    """Of the modules that move the residual stream as they are moved, the last one that holds no other."""
    cannot = (
        f"{type(model).__name__} cannot be given what the methods residual, hybrid and fitted add to the residual "
        f"stream: behind the feed-forward block of {layer_name}"
    )
    stream = run.output
    if run.arguments is None or stream is None or stream.numel() != stream.shape[-1]:
        shape = None if stream is None else list(stream.shape)
        raise NptiError(f"{cannot} there is no one stream of [rows, tokens, hidden] (one token gave {shape}).")
    hidden, inside = stream.shape[-1], _name_within(run.layer, site.owner)
    names = [name for name, _, _ in run.ran]
    found: list[tuple[bool, bool, int, OutputPlace]] = []
    shapes = [[1, hidden]] if site.flat else [[1, 1, hidden]]
    if site.experts is not None:  # the block may be flat or not, and the experts within it are
        shapes = [[1, hidden], [1, 1, hidden]]
    for order, (name, module, output) in enumerate(run.ran):
        # One that is called twice (Phi's dropout) would be moved twice; one before the gate does not lie behind it.
        if order < run.gate_ended or names.count(name) > 1 or not isinstance(output, Tensor):
            continue
        if list(output.shape) not in shapes:
            continue
        if scale := _scale(run, module, stream):
            place = OutputPlace(site.layer, f"{layer_name}.{name}", module, hidden, scale, output.dtype, output.device)
            found.append((scale == 1.0, not f"{inside}.".startswith(f"{name}."), order, place))
    if not found:
        looked = ", ".join(names[run.gate_ended :])
        raise NptiError(
            f"{cannot} no module's output is added to it as it is (looked at {looked or 'none'}); use the method npti "
            "or mean-shift."
        )
    return max(found, key=lambda of: of[:3])[3]


def _scale(run: _LayerRun, module: nn.Module, stream: Tensor) -> float | None:
    """What a module's output is multiplied by until it is in the residual stream; None if it is not added to it."""
    assert run.arguments is not None
    arguments, keywords = run.arguments
    probe = Probe.beside(stream)
    if probe is None:
        return None
    here = get_ident()
    hook = module.register_forward_hook(
        lambda _module, _given, output: probe.moved(output) if get_ident() == here else output
    )
    try:
        moved = _stream(run.layer(*arguments, **keywords))
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return None  # a layer that cannot be called again alone
    finally:
        hook.remove()
    if moved is None or moved.shape != stream.shape:
        return None
    return probe.scale(stream, moved, run.layer)


def _stream(output: Any) -> Tensor | None:
    """The residual stream in what a layer returned."""
    first = output[0] if isinstance(output, tuple) else output
    return first if isinstance(first, Tensor) else None


def _name_within(layer: nn.Module, owner: nn.Module) -> str:
    return {module: str(name) for name, module in layer.named_modules()}[owner]
