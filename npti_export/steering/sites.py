"""Where a model's feed-forward neurons sit: the sites, found by structure and proved by a one-token forward.

A gated layer holds three linear maps (hidden to F twice, F to hidden once) or two (hidden to 2F, gate and up fused) and
an activation, an ungated layer two. Which of the two wide maps is the gate is not read off its name: it is the one
whose output goes through the activation and is not multiplied in. A mixture of experts holds the maps of all experts in
parameters of three dimensions; its router is left alone. A model whose layers do not look like that is refused with the
name of the module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from npti_export.adapter.base_model import BaseModel, LayerNeurons
from npti_export.adapter.find import id_of_model_name
from npti_export.errors import NptiError
from npti_export.steering.expert_flow import ExpertsFlow, ExpertsProof
from npti_export.steering.experts import Experts
from npti_export.steering.feed_forward import CONVOLUTIONS, Candidate, Wiring, candidates, experts_in
from npti_export.steering.flow import Flow, Proof
from npti_export.steering.functional import ATTRIBUTE
from npti_export.steering.shares import first_rows, share_of
from npti_export.steering.site import Site as Site

REFUSED = {
    "rwkv": "it is a recurrent network, whose feed-forward layers mix each token with the one before and gate the map "
    "back, not the neurons",
}
"""Model types that hold wide and narrow maps and are no case for equation 4, with the reason."""

FINGERPRINT_WEIGHTS = 64
"""How many gate weights of every layer enter the fingerprint."""

FINGERPRINTED = (torch.bfloat16, torch.float32, torch.float64)
"""Types of weights that it is taken of."""


def find_sites(model: nn.Module) -> list[Site]:
    """Finds the activation of every feed-forward layer, and proves by a one-token forward that each one runs.

    Args:
        model: A decoder-only transformers model with gated or plain feed-forward layers.

    Returns:
        One site a layer, in the order of the layers; of a mixture of experts one for all routed experts, and before it
        one for the block that every token goes through beside them, if there is one.

    Raises:
        NptiError: If a layer is not understood or an activation did not run; the module is named.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> tiny = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    ...                    vocab_size=32)
    >>> [(site.name, site.width) for site in find_sites(LlamaForCausalLM(tiny))]
    [('model.layers.0.mlp.act_fn', 24), ('model.layers.1.mlp.act_fn', 24)]
    """
    layers_name, layers = decoder_layers(model)
    mixtures = [_experts_of(model, f"{layers_name}.{number}", layer) for number, layer in enumerate(layers)]
    found = [
        _candidates_of(model, f"{layers_name}.{number}", layer, beside=experts is not None)
        for number, (layer, experts) in enumerate(zip(layers, mixtures, strict=True))
    ]
    with ExitStack() as watching:
        flow = watching.enter_context(Flow(candidate for of_layer in found for candidate in of_layer))
        experts_flow = watching.enter_context(ExpertsFlow(experts for experts in mixtures if experts))
        one_token_forward(model)
    sites = []
    with torch.no_grad():
        for number, (of_layer, experts) in enumerate(zip(found, mixtures, strict=True)):
            if of_layer:
                sites.append(_proved(model, number, of_layer, flow))
            if experts:
                before = sites[-1].neurons if of_layer else 0
                sites.append(_proved_experts(model, number, experts, experts_flow, before))
    return sites


def one_token_forward(model: nn.Module) -> None:
    """Runs the model on one token, leaving no trace: no gradient, no cache, the random state as it was."""
    device = next(model.parameters()).device
    if device.type == "meta":  # the weights are elsewhere until they are needed; accelerate brings the ids to them
        device = torch.device("cpu")
    config: Any = model.config
    # Padding often has the embedding 0, and then everything behind it may be 0 and tell nothing.
    token = int(getattr(config.get_text_config(), "pad_token_id", None) == 0)
    rng = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with torch.no_grad(), rng, torch.compiler.set_stance("force_eager"):  # what is compiled need not be so for this
        try:
            model(input_ids=torch.full((1, 1), token, device=device), use_cache=False)
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
        num_layers=sites[-1].layer + 1,
        neurons_per_layer=neurons_per_layer(sites),
        activation=str(activation),
        gated=all(site.gated for site in sites),
        fingerprint=_fingerprint(sites),
    )


def neurons_per_layer(sites: Sequence[Site]) -> tuple[LayerNeurons, ...]:
    """How many neurons each layer has, by its sites."""
    experts = {site.layer: (site.experts.count, site.width) for site in sites if site.experts is not None}
    blocks = {site.layer: site.neurons for site in sites if site.experts is None}
    return tuple(
        LayerNeurons(0, *experts[layer], blocks.get(layer, 0)) if layer in experts else LayerNeurons(blocks[layer])
        for layer in range(sites[-1].layer + 1)
    )


def base_model_id(model: nn.Module) -> str:
    """The Hub id that the model was loaded by; for a folder its last component."""
    config: Any = model.config
    return id_of_model_name(str(getattr(config, "name_or_path", "") or config.model_type))


def decoder_of(model: nn.Module) -> nn.Module:
    """The module that holds the decoder layers and runs them one after the other."""
    return model.get_submodule(decoder_layers(model)[0].rpartition(".")[0])


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of as many layers as the config of the text part says, within the text part."""
    config: Any = getattr(model, "config", None)
    kind = type(model).__name__
    if config is None or not hasattr(config, "get_text_config"):
        raise NptiError(f"{kind} is no transformers model (it has no config with a text part).")
    if config.is_encoder_decoder:
        raise NptiError(f"{kind} cannot be steered: it is an encoder with a decoder; decoder-only models can.")
    if reason := REFUSED.get(str(config.get_text_config().model_type)):
        raise NptiError(f"{kind} cannot be steered: {reason}.")
    expected = getattr(config.get_text_config(), "num_hidden_layers", None)
    # A vision tower may have as many layers; transformers says which part is the text decoder.
    text_part: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    within = set(text_part.modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == expected and module in within:
            return name, module
    raise NptiError(f"{kind} cannot be steered: no list of {expected} decoder layers was found in it.")


def _experts_of(model: nn.Module, layer_name: str, layer: nn.Module) -> Experts | None:
    """The routed experts of a layer, if it has some."""
    found = experts_in(layer, layer_name)
    if len(found) > 1:
        names = ", ".join(name for name, _, _ in found)
        raise NptiError(
            f"{type(model).__name__} cannot be steered: its layer {layer_name} holds {len(found)} mixtures of experts "
            f"({names}), one was expected."
        )
    return Experts(*found[0]) if found else None


def _candidates_of(model: nn.Module, layer_name: str, layer: nn.Module, beside: bool) -> list[Candidate]:
    """The parts of a layer that look like a feed-forward block; refused where there are none, and no experts."""
    cannot = f"{type(model).__name__} cannot be steered: in its layer {layer_name}"
    found = candidates(layer, layer_name)
    if found or beside:
        return found
    parts = ", ".join(type(part).__name__ for part in layer.children())
    if any(isinstance(part, CONVOLUTIONS) for part in layer.modules()):
        raise NptiError(
            f"{cannot} there is a state-space or convolution mixer and no feed-forward block ({parts}), so it has no "
            "feed-forward neurons."
        )
    raise NptiError(f"{cannot} no feed-forward block of wide and narrow maps was found ({parts}).")


def _proved(model: nn.Module, layer: int, found: list[Candidate], flow: Flow) -> Site:
    """The one candidate of a layer that the data bear out."""
    proofs = [(candidate, flow.prove(candidate)) for candidate in found]
    proved = [(candidate, proof) for candidate, proof in proofs if isinstance(proof, Proof)]
    if not proved:
        _, reason = max(proofs, key=lambda of: of[0].width)
        raise NptiError(str(reason))
    if len(proved) > 1:
        names = ", ".join(candidate.name for candidate, _ in proved)
        raise NptiError(
            f"{type(model).__name__} cannot be steered: its layer {layer} has {len(proved)} feed-forward blocks "
            f"({names}), one was expected."
        )
    candidate, proof = proved[0]
    attribute = candidate.activation or ATTRIBUTE
    gate, width = candidate.child(proof.gate), int(proof.activation.shape[-1])
    return Site(
        layer,
        f"{candidate.name}.{attribute}",
        candidate.module,
        attribute,
        width,
        gate,
        gated=candidate.wiring is not Wiring.PLAIN,
        dtype=proof.activation.dtype,
        device=proof.activation.device,
        flat=proof.activation.ndim == 2,
        functional=proof.functional,
        first=0 if width == candidate.width else share_of(gate, candidate.width)[0],
        elsewhere=candidate.width - width,
    )


def _proved_experts(model: nn.Module, layer: int, experts: Experts, flow: ExpertsFlow, before: int) -> Site:
    """The site of a layer's experts, if the data bear them out."""
    proof = flow.prove(experts)
    if not isinstance(proof, ExpertsProof):
        raise NptiError(f"{type(model).__name__} cannot be steered: {proof}")
    return Site(
        layer,
        f"{experts.name}.{proof.attribute}",
        experts.module,
        proof.attribute,
        int(proof.activation.shape[-1]),
        experts.module,
        proof.gated,
        proof.activation.dtype,
        proof.activation.device,
        functional=proof.functional,
        experts=experts,
        first=before,
        weight=proof.weight,
    )


def _fingerprint(sites: list[Site]) -> str | None:
    """SHA-256 over the first gate weights of every layer in bfloat16; None where they are not to be had.

    That is where they are quantised or elsewhere, and in float16: it rounds small weights as bfloat16 does not, so the
    same checkpoint would look like another one (of a billion weights' first thousands, some always are that small).
    """
    digest = hashlib.sha256()
    for site in sites:
        weight = first_rows(getattr(site.gate, site.weight))
        if weight is None or weight.dtype not in FINGERPRINTED or weight.device.type == "meta":
            return None
        first = weight.detach().flatten()[:FINGERPRINT_WEIGHTS].to(device="cpu", dtype=torch.bfloat16)
        digest.update(first.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
