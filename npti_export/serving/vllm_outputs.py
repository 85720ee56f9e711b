"""Where a model that vLLM has loaded takes the dense part: a module that goes into the residual stream as it is.

Found as in the runtime (``steering/output.py``): of the modules that run behind the activation's map, the one is wanted
whose output, moved by a vector, moves the layer's output by the same vector. Under tensor parallelism that is only true
behind the reduction; before it each rank's vector would be added once.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.serving.personalities import SMALLEST_SCALE
from npti_export.serving.vllm_layers import LayerRun, stream_of
from npti_export.serving.vllm_sites import ServedSite
from npti_export.steering.output import OutputPlace, Probe


def dense_layers(adapter: PersonalityAdapter) -> list[int]:
    """The layers behind which any pole adds to the residual stream, ascending.

    Args:
        adapter: What is served.
    """
    records = [record for trait in adapter.traits.values() for record in trait.poles.values()]
    return sorted({int(layer) for record in records if record.residual for layer in record.residual.layer})


@torch.inference_mode()
def find_served_outputs(
    adapter: PersonalityAdapter, sites: Sequence[ServedSite], runs: Sequence[LayerRun]
) -> dict[int, OutputPlace]:
    """The places where an adapter's dense parts are added, each proved by moving it.

    Args:
        adapter: Its poles of the methods ``residual`` and ``hybrid`` say which layers are concerned.
        sites: Of all layers.
        runs: Of the same layers.

    Returns:
        The place of every layer concerned, by the layer's number; empty for an adapter without a dense part.

    Raises:
        NptiError: If a layer has no such place, or the residual stream is not as wide as the adapter's vectors.
    """
    places = {layer: _place(sites[layer], runs[layer]) for layer in dense_layers(adapter)}
    records = [record for trait in adapter.traits.values() for record in trait.poles.values()]
    hidden = next((record.residual.hidden for record in records if record.residual), None)
    for place in places.values():
        if place.hidden != hidden:
            raise NptiError(
                f"The adapter's residual vectors are {hidden} wide and the residual stream behind {place.name} is "
                f"{place.hidden}; the adapter was made for another model."
            )
    return places


def add_to_output(place: OutputPlace, residual: Tensor, token_slots: Tensor) -> None:
    """Lets a module add to its output, for every token, the vector of the token's row.

    Args:
        place: Which module; its type, its parameters and their names stay.
        residual: Vectors of all rows, [rows, hidden].
        token_slots: The row of each token, int64 [at least tokens], written before every step.
    """
    # Buffers and a method of the instance: a compiler finds both through the model, as it finds the weights, and takes
    # no copy of them into a graph that is kept.
    place.module.register_buffer("npti_residual", residual, persistent=False)
    place.module.register_buffer("npti_token_slots", token_slots, persistent=False)
    vars(place.module)["forward"] = MethodType(_forward_and_add, place.module)


def _forward_and_add(module: Any, *arguments: Any, **keywords: Any) -> Any:
    """The forward of the module's type, then the addition."""
    output = type(module).forward(module, *arguments, **keywords)
    first = output[0] if isinstance(output, tuple) else output
    added = first + module.npti_residual[module.npti_token_slots.narrow(0, 0, first.shape[-2])]
    return (added, *output[1:]) if isinstance(output, tuple) else added


def _place(site: ServedSite, run: LayerRun) -> OutputPlace:
    """Of the modules that move the residual stream as they are moved, the last one that holds no other."""
    cannot = (
        "The methods residual, hybrid and fitted cannot be served for this model in this way of running it: behind the "
        f"feed-forward block of {run.name}"
    )
    ran, stream = _ran_behind_the_gate(site, run)
    probe = Probe.beside(stream) if stream.numel() == stream.shape[-1] else None
    if probe is None:
        raise NptiError(f"{cannot} there is no one finite stream of [tokens, hidden] (one token gave {stream.shape}).")
    inside = {module for module in run.layer.modules() if site.site.owner in set(module.modules())}
    found: list[tuple[bool, bool, int, OutputPlace]] = []
    for order, (name, module, output) in enumerate(ran):
        if [other for _, other, _ in ran].count(module) > 1 or "forward" in vars(module):
            continue
        if output is None or output.shape[-1] != stream.shape[-1] or output.numel() != stream.numel():
            continue
        scale = probe.scale(stream, _moved(run, module, probe), run.layer)
        if scale is not None and scale >= SMALLEST_SCALE:
            hidden = stream.shape[-1]
            place = OutputPlace(
                site.site.layer, f"{run.name}.{name}", module, hidden, scale, output.dtype, output.device
            )
            found.append((scale == 1.0, module not in inside, order, place))
    if not found:
        looked = ", ".join(name for name, _, _ in ran)
        raise NptiError(
            f"{cannot} no module's output is added to the residual stream as it is (looked at {looked or 'none'}); "
            "serve poles of the methods npti or mean-shift, or without tensor parallelism where that is what is in the "
            "way."
        )
    return max(found, key=lambda of: of[:3])[3]


def _ran_behind_the_gate(site: ServedSite, run: LayerRun) -> tuple[list[tuple[str, nn.Module, Tensor | None]], Tensor]:
    """Name, module and output of what a layer called after the gate's map, as the calls ended, and the stream."""
    ran: list[tuple[str, nn.Module, Tensor | None]] = []
    hooks = [site.site.gate.register_forward_hook(lambda *_: ran.clear())]
    for name, module in run.layer.named_modules():
        if name and module is not site.site.gate:
            hooks.append(module.register_forward_hook(_appender(ran, name)))
    try:
        stream = stream_of(run.again())
    finally:
        for hook in hooks:
            hook.remove()
    return ran, stream


def _appender(ran: list[tuple[str, nn.Module, Tensor | None]], name: str) -> Any:
    return lambda module, _given, output: ran.append((name, module, _first(output)))


def _moved(run: LayerRun, module: nn.Module, probe: Probe) -> Tensor:
    """The residual stream with a module's output moved."""

    def move(_module: nn.Module, _given: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (probe.moved(output[0]), *output[1:])
        return probe.moved(output)

    hook = module.register_forward_hook(move)
    try:
        return stream_of(run.again())
    finally:
        hook.remove()


def _first(output: Any) -> Tensor | None:
    """What a module computed, where a bias that somebody else adds may stand beside it."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) else None
