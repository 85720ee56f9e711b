"""The feed-forward activations of a model that vLLM has loaded: found by structure, one a layer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from npti_export.adapter.base_model import BaseModel, LayerNeurons
from npti_export.adapter.find import id_of_model_name
from npti_export.errors import NptiError
from npti_export.steering.sites import FINGERPRINT_WEIGHTS, FINGERPRINTED, Site

_LAYER = re.compile(r"\.(\d+)\.")
_EXPERTS = re.compile(r"FusedMoE|MoERunner|(?<!MixtureOf)Experts")
"""In the names of a module's classes; a model that may have some is a MixtureOfExperts without them too (Gemma 4)."""


@dataclass(frozen=True)
class ServedSite:
    """The activation of one feed-forward layer, of which this process may hold a slice.

    Args:
        site: Where it is; its width is that of the slice.
        function: The non-linearity, of a gated layer that of the gate half.
        first: Index of the slice's first neuron in the layer.
        whole: How many neurons the layer has.
        layer_name: Dotted name of the decoder layer within the model.
        merged: Whether it gets gate and up side by side and returns their product.
    """

    site: Site
    function: Callable[[Tensor], Tensor]
    first: int
    whole: int
    layer_name: str
    merged: bool = False


def find_served_sites(model: nn.Module, dtype: torch.dtype, device: torch.device) -> list[ServedSite]:
    """Finds the activation of every feed-forward layer.

    Args:
        model: The model as vLLM has loaded it.
        dtype: Of its activations.
        device: Where it runs.

    Returns:
        One site a layer, in the order of the layers.

    Raises:
        NptiError: If a layer is not understood; the module is named.
    """
    found: dict[int, ServedSite] = {}
    # A vision tower has feed-forward blocks too, which no personality is about.
    text = set(model.get_language_model().modules() if hasattr(model, "get_language_model") else model.modules())  # type: ignore[operator]
    for name, module in model.named_modules():
        if module not in text:
            continue
        if _EXPERTS.search(" ".join(kind.__name__ for kind in type(module).__mro__)):
            raise NptiError(
                f"{type(model).__name__} cannot be served with personalities: {name} is a mixture of experts, whose "
                "fused kernels go round the edit; dense models can."
            )
        layer = _LAYER.search(f"{name}.")
        if layer is None:
            continue
        site = _site(name, module, layer, dtype, device)
        if site is None:
            continue
        if site.site.layer in found:
            raise NptiError(
                f"{type(model).__name__} cannot be served with personalities: layer {site.site.layer} has two "
                f"feed-forward blocks, {found[site.site.layer].site.name} and {site.site.name}."
            )
        found[site.site.layer] = site
    if not found or sorted(found) != list(range(len(found))):
        raise NptiError(
            f"{type(model).__name__} cannot be served with personalities: feed-forward blocks of a wide and a narrow "
            f"map with an activation between them were found in the layers {sorted(found)}, one in each was expected."
        )
    return [found[layer] for layer in sorted(found)]


def describe_served_model(sites: list[ServedSite], model_config: Any) -> BaseModel:
    """What the adapter is held against: the shape that was found and, on the first rank, the fingerprint.

    Args:
        sites: Of all layers.
        model_config: vLLM's.
    """
    text = model_config.hf_text_config
    activation = getattr(text, "hidden_act", None) or getattr(text, "activation_function", "unknown")
    return BaseModel(
        id=id_of_model_name(str(model_config.model)),
        revision=None,
        model_type=model_config.hf_config.model_type,
        num_layers=len(sites),
        neurons_per_layer=tuple(LayerNeurons(dense=site.whole) for site in sites),
        activation=str(activation),
        gated=all(site.site.gated for site in sites),
        fingerprint=_fingerprint(sites),
    )


def _site(
    name: str, module: nn.Module, layer: re.Match[str], dtype: torch.dtype, device: torch.device
) -> ServedSite | None:
    """The activation that a module holds beside a wide and a narrow map, if it is such a module."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.layers.linear import (
        ColumnParallelLinear,
        MergedColumnParallelLinear,
        QKVParallelLinear,
        ReplicatedLinear,
        RowParallelLinear,
    )

    wide: list[Any] = []
    narrow: list[Any] = []
    unsharded: list[Any] = []
    activations: list[tuple[str, nn.Module]] = []
    for key, child in module.named_children():
        linear = getattr(child, "base_layer", child)  # a LoRA stands around the map
        if isinstance(linear, QKVParallelLinear | AttentionLayerBase):
            return None
        if isinstance(linear, ColumnParallelLinear):
            wide.append(linear)
        elif isinstance(linear, RowParallelLinear):
            narrow.append(linear)
        elif isinstance(linear, ReplicatedLinear):
            unsharded.append(linear)
        elif _may_be_activation(child):
            activations.append((key, child))
    if not wide and not narrow and len(unsharded) == 2 and unsharded[0].output_size > unsharded[0].input_size:
        # Models that vLLM takes from transformers without a plan for ranks (GPTBigCode); every rank has all of it. The
        # other way round, a narrow map before a wide one, is no feed-forward block (the input per layer of Gemma 3n).
        wide, narrow = unsharded[:1], unsharded[1:]
    if not wide or len(narrow) != 1 or not activations:
        return None
    whole = int(narrow[0].input_size)
    width = int(getattr(narrow[0], "input_size_per_partition", whole))
    merged = isinstance(wide[0], MergedColumnParallelLinear)
    # GLM, as transformers has it, splits the output of one map itself, and its activation gets the gate half alone.
    gated = merged or int(wide[0].output_size) == 2 * whole
    if getattr(wide[0], "gather_output", False):
        width = whole  # the ranks have all of it between the maps
    if any(int(linear.output_size) != whole * (1 + gated) for linear in wide):
        return None
    if len(wide) > 1 or len(activations) > 1:
        parts = ", ".join(key for key, _ in module.named_children())
        raise NptiError(
            f"{name} cannot be served with personalities: it holds {len(wide)} wide maps and {len(activations)} "
            f"activations ({parts}); one of each was expected, gate and up in one map."
        )
    key, activation = activations[0]
    function = _gate_function(activation) if merged else _plain_function(activation)
    if function is None:
        raise NptiError(
            f"{name}.{key} is {type(activation).__name__}, which cannot be served with personalities; SiluAndMul and "
            "GeluAndMul can, and in layers without a gate plain activations."
        )
    site = Site(
        layer=int(layer[1]),
        name=f"{name}.{key}",
        owner=module,
        attribute=key,
        width=width,
        gate=wide[0],
        gated=gated,
        dtype=dtype,
        device=device,
    )
    first = width * int(narrow[0].tp_rank) if width < whole else 0
    return ServedSite(site, function, first, whole, f"{name}."[: layer.end() - 1], merged)


def _gate_function(activation: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The non-linearity that a gate-first activation of vLLM applies to its first half."""
    from vllm.model_executor.layers.activation import GeluAndMul, GeluAndMulSparse, SiluAndMul

    if type(activation) is SiluAndMul:
        return nn.functional.silu
    if type(activation) is GeluAndMul:
        return nn.GELU(approximate=str(activation.approximate))
    if type(activation) is GeluAndMulSparse:
        # Gemma 3n lets only the largest gates through; beside an up half of ones the product is the activation.
        return lambda gate: activation(torch.cat([gate, torch.ones_like(gate)], dim=-1))
    return None


def _plain_function(activation: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The activation itself, if it maps every number on its own."""
    kind = type(activation)
    if kind.__module__ in ("torch.nn.modules.activation", "transformers.activations"):
        return activation
    if kind.__module__ == "vllm.model_executor.layers.activation" and "Mul" not in kind.__name__:
        return activation
    return None


def _may_be_activation(module: nn.Module) -> bool:
    """No parts, no parameters but single numbers (xIELU has two), and neither dropout nor the identity."""
    if isinstance(module, nn.Dropout | nn.Identity):
        return False
    return not list(module.children()) and all(parameter.numel() == 1 for parameter in module.parameters())


def _fingerprint(sites: list[ServedSite]) -> str | None:
    """SHA-256 over the first gate weights as the adapter records it; None where they are sharded away or packed."""
    digest = hashlib.sha256()
    for site in sites:
        weight = getattr(site.site.gate, "weight", None)
        if site.first or not isinstance(weight, Tensor) or weight.dtype not in FINGERPRINTED or weight.ndim != 2:
            return None
        if weight.numel() < FINGERPRINT_WEIGHTS or weight.shape[0] != site.site.width * (1 + site.site.gated):
            return None
        first = weight.detach().flatten()[:FINGERPRINT_WEIGHTS].to(device="cpu", dtype=torch.bfloat16)
        digest.update(first.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
