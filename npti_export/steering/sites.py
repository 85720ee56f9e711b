"""Where a model's feed-forward neurons sit: one site a layer, found by structure and proved by a one-token forward.

A gated layer holds three linear maps (hidden to F twice, F to hidden once) and an activation module; an ungated layer
holds two. Which of the two wide maps is the gate is not read off its name: it is the one whose output reaches the
activation. A model whose layers do not look like that is refused with the name of the module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from npti_export.adapter.base_model import BaseModel, LayerNeurons
from npti_export.adapter.find import id_of_model_name
from npti_export.errors import NptiError

FINGERPRINT_WEIGHTS = 64
"""How many gate weights of every layer enter the fingerprint."""


@dataclass(frozen=True)
class Site:
    """The activation of one feed-forward layer.

    Args:
        layer: Number of the decoder layer, from 0.
        name: Dotted name of the activation module within the model.
        owner: The module that holds the activation.
        attribute: The activation's name within its owner.
        width: Number of neurons.
        gate: The linear map whose output the activation gets.
        gated: Whether a second wide map is multiplied in.
        dtype: Of the activation.
        device: Where it is computed.
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

    @property
    def activation(self) -> nn.Module:
        """The activation module as it stands there now."""
        return getattr(self.owner, self.attribute)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _FeedForward:
    """A module that looks like a feed-forward block; which wide map is the gate is still to be seen."""

    name: str
    module: nn.Module
    wide: tuple[nn.Module, ...]
    width: int
    attribute: str


def find_sites(model: nn.Module) -> list[Site]:
    """Finds the activation of every feed-forward layer, and proves by a one-token forward that each one runs.

    Args:
        model: A decoder-only transformers model with gated or plain feed-forward layers.

    Returns:
        One site a layer, in the order of the layers.

    Raises:
        NptiError: If a layer is not understood or an activation did not run; the module is named.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> tiny = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    ...                    vocab_size=32)
    >>> [(site.name, site.width) for site in find_sites(LlamaForCausalLM(tiny))]
    [('model.layers.0.mlp.act_fn', 24), ('model.layers.1.mlp.act_fn', 24)]
    """
    layers_name, layers = _decoder_layers(model)
    blocks = [_feed_forward_of(model, f"{layers_name}.{number}", layer) for number, layer in enumerate(layers)]
    inputs: dict[str, list[Tensor]] = {}
    outputs: dict[nn.Module, list[Tensor]] = {}

    def saw_input(name: str) -> Callable[..., None]:
        return lambda _module, arguments: inputs.setdefault(name, []).append(arguments[0])

    def saw_output(module: nn.Module, _arguments: Any, output: Tensor) -> None:
        outputs.setdefault(module, []).append(output)

    hooks = []
    for block in blocks:
        hooks.append(getattr(block.module, block.attribute).register_forward_pre_hook(saw_input(block.name)))
        hooks += [linear.register_forward_hook(saw_output) for linear in block.wide]
    try:
        one_token_forward(model)
    finally:
        for hook in hooks:
            hook.remove()
    return [_proved(number, block, inputs, outputs) for number, block in enumerate(blocks)]


def one_token_forward(model: nn.Module) -> None:
    """Runs the model on one token, leaving no trace: no gradient, no cache, the random state as it was."""
    device = next(model.parameters()).device
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device), use_cache=False)
        except NptiError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            raise NptiError(
                f"{type(model).__name__} cannot be steered: a forward on one token fails with {type(error).__name__} "
                f"({' '.join(str(error).split())[:200]})."
            ) from error


def describe_base_model(model: nn.Module, sites: list[Site]) -> BaseModel:
    """What an adapter records of its base model: name, shape, activation and fingerprint.

    Args:
        model: The transformers model.
        sites: Its sites, from :func:`find_sites`.
    """
    config: Any = model.config
    text_config = config.get_text_config()
    activation = getattr(text_config, "hidden_act", None) or getattr(text_config, "activation_function", "unknown")
    return BaseModel(
        id=base_model_id(model),
        revision=getattr(config, "_commit_hash", None),
        model_type=config.model_type,
        num_layers=len(sites),
        neurons_per_layer=tuple(LayerNeurons(dense=site.width) for site in sites),
        activation=str(activation),
        gated=all(site.gated for site in sites),
        fingerprint=_fingerprint(sites),
    )


def base_model_id(model: nn.Module) -> str:
    """The Hub id that the model was loaded by; for a folder its last component."""
    config: Any = model.config
    return id_of_model_name(str(getattr(config, "name_or_path", "") or config.model_type))


def decoder_of(model: nn.Module) -> nn.Module:
    """The module that holds the decoder layers and runs them one after the other."""
    return model.get_submodule(_decoder_layers(model)[0].rpartition(".")[0])


def _decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of as many layers as the config of the text part says, within the text part."""
    config: Any = getattr(model, "config", None)
    kind = type(model).__name__
    if config is None or not hasattr(config, "get_text_config"):
        raise NptiError(f"{kind} is no transformers model (it has no config with a text part).")
    if config.is_encoder_decoder:
        raise NptiError(f"{kind} cannot be steered: it is an encoder with a decoder; decoder-only models can.")
    expected = getattr(config.get_text_config(), "num_hidden_layers", None)
    # A vision tower may have as many layers; transformers says which part is the text decoder.
    text_part: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    within = set(text_part.modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == expected and module in within:
            return name, module
    raise NptiError(f"{kind} cannot be steered: no list of {expected} decoder layers was found in it.")


def _feed_forward_of(model: nn.Module, layer_name: str, layer: nn.Module) -> _FeedForward:
    """The one module inside a layer with wide maps, one narrow map and one activation; refused where there is none."""
    cannot = f"{type(model).__name__} cannot be steered: in its layer {layer_name}"
    found = []
    for name, module in layer.named_modules(prefix=layer_name):
        if _has_experts(module):
            raise NptiError(f"{cannot} {name} is a mixture of experts; dense layers can be steered in this release.")
        linears = [child for child in module.children() if isinstance(child, nn.Linear)]
        others = {key: child for key, child in module.named_children() if not isinstance(child, nn.Linear)}
        activations = [key for key, child in others.items() if _may_be_activation(child)]
        if len(linears) not in (2, 3) or len(activations) != 1:
            continue
        narrow = linears[-1]
        wide = tuple(linear for linear in linears if linear is not narrow)
        width = narrow.in_features
        hidden = narrow.out_features
        if all((linear.in_features, linear.out_features) == (hidden, width) for linear in wide):
            found.append(_FeedForward(name, module, wide, width, activations[0]))
    if len(found) != 1:
        raise NptiError(
            f"{cannot} {len(found)} feed-forward blocks of gate, up and down maps with an activation module were "
            "found, one was expected."
        )
    return found[0]


def _has_experts(module: nn.Module) -> bool:
    """Experts lie fused in three-dimensional parameters; only convolutions have such beside them."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    return any(parameter.ndim >= 3 for parameter in module.parameters(recurse=False))


def _may_be_activation(module: nn.Module) -> bool:
    """An activation has no parameters and no parts, and neither dropout nor the identity is one."""
    if isinstance(module, nn.Dropout | nn.Identity):
        return False
    return not list(module.children()) and not list(module.parameters())


def _proved(
    layer: int, block: _FeedForward, inputs: dict[str, list[Tensor]], outputs: dict[nn.Module, list[Tensor]]
) -> Site:
    name = f"{block.name}.{block.attribute}"
    seen = inputs.get(block.name, [])
    if len(seen) != 1 or seen[0].shape[-1] != block.width:
        widths = [tensor.shape[-1] for tensor in seen]
        raise NptiError(
            f"The activation {name} did not run as expected: one call on width {block.width} was expected in a "
            f"one-token forward, calls on widths {widths} were seen; a replaced kernel may go round it."
        )
    if seen[0].ndim != 3:
        raise NptiError(
            f"The activation {name} runs on a tensor of shape {list(seen[0].shape)}; [rows, tokens, width] was "
            "expected, so that a token's row can be told."
        )
    gates = [linear for linear in block.wide if any(output is seen[0] for output in outputs.get(linear, []))]
    if len(gates) != 1:
        raise NptiError(f"The activation {name} does not get the output of one of its block's maps as it is.")
    return Site(
        layer,
        name,
        block.module,
        block.attribute,
        block.width,
        gates[0],
        gated=len(block.wide) == 2,
        dtype=seen[0].dtype,
        device=seen[0].device,
    )


def _fingerprint(sites: list[Site]) -> str | None:
    """SHA-256 over the first gate weights of every layer in bfloat16; None where weights are quantised or elsewhere."""
    digest = hashlib.sha256()
    for site in sites:
        weight = site.gate.weight
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.device.type == "meta":
            return None
        first = weight.detach().flatten()[:FINGERPRINT_WEIGHTS].to(device="cpu", dtype=torch.bfloat16)
        digest.update(first.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
