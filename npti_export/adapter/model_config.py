"""What a model's config tells of its shape: enough for an adapter whose neurons were found elsewhere."""

from __future__ import annotations

from typing import Any

from npti_export.adapter.base_model import UNKNOWN, BaseModel, LayerNeurons
from npti_export.adapter.find import id_of_model_name
from npti_export.errors import NptiError

MAX_LAYERS = 2**15 - 1
MAX_WIDTH = 2**31 - 1
"""What the tensors of the format can number: layers are int16, gate units int32."""

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What the configs of mixtures of experts call the number of experts."""
_UNGATED = (
    *("apertus", "arcee", "bloom", "falcon", "gpt2", "gpt_neo"),
    *("gpt_neox", "gptj", "nemotron", "opt", "phi", "starcoder2"),
)
"""Model types whose layers have no gate beside the up projection, which no config says; others are taken as gated."""


def base_model_from_config(name: str, num_layers: int | None = None, neurons_per_layer: int | None = None) -> BaseModel:
    """The shape of a model by its config: a folder's, one in the Hub cache, or the Hub's own.

    Without weights there is no fingerprint, and which revision the neurons were found in is not known.

    Args:
        name: Hub id or folder of the model.
        num_layers: Number of decoder layers, for a model whose config cannot be had; then the Hub is not asked.
        neurons_per_layer: Gate units of each layer, likewise.

    Returns:
        The base model; type and activation are :data:`~npti_export.adapter.base_model.UNKNOWN` without a config.

    Raises:
        NptiError: If the config cannot be had and the two numbers are not given, if they contradict it, or if the model
            is a mixture of experts.

    >>> model = base_model_from_config("org/name", num_layers=32, neurons_per_layer=14336)
    >>> model.model_type, model.num_neurons
    ('unknown', 458752)
    """
    if (num_layers is None) != (neurons_per_layer is None):
        raise NptiError("Give both --num-layers and --neurons-per-layer, or neither.")
    given = None if num_layers is None or neurons_per_layer is None else (num_layers, neurons_per_layer)
    config = _config(name, only_local=given is not None)
    if given is None:
        if isinstance(config, str):
            raise NptiError(
                f"The config of {name} cannot be had ({config}); give --num-layers and --neurons-per-layer."
            )
        given = _shape(config, name)
    elif not isinstance(config, str):
        found = _shape(config, name, given)
        if found != given:
            raise NptiError(
                f"The config of {name} says {found[0]} layers of {found[1]} neurons, not {given[0]} of {given[1]}; "
                "leave out --num-layers and --neurons-per-layer, or name another model."
            )
    known = not isinstance(config, str)
    return BaseModel(
        id=id_of_model_name(name),
        revision=None,
        model_type=config.model_type if known else UNKNOWN,
        num_layers=given[0],
        neurons_per_layer=(LayerNeurons(dense=given[1]),) * given[0],
        activation=_activation(config) if known else UNKNOWN,
        gated=not (known and config.get_text_config().model_type in _UNGATED),
        fingerprint=None,
    )


def _config(name: str, only_local: bool) -> Any:
    """The config as transformers reads it, or in a string why there is none; no remote code is ever run."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, local_files_only=only_local, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        first_sentence = " ".join(str(error).split()).split(". ")[0]
        return first_sentence[:200].rstrip(". ") or type(error).__name__


def _shape(config: Any, name: str, otherwise: tuple[int, int] | None = None) -> tuple[int, int]:
    """Layers and gate units of each; ``otherwise`` where the config does not say."""
    text = config.get_text_config()
    counts = [getattr(text, key, None) for key in _EXPERT_COUNTS]
    if any(isinstance(count, int) and count > 1 for count in counts):
        raise NptiError(
            f"{name} is a mixture of experts; published results name no expert, so they are of another model."
        )
    layers, width = (getattr(text, key, None) for key in ("num_hidden_layers", "intermediate_size"))
    if isinstance(width, list) and len(set(width)) == 1:
        width = width[0]
    if type(layers) is int and type(width) is int and 0 < layers <= MAX_LAYERS and 0 < width <= MAX_WIDTH:
        return layers, width
    if otherwise is None:
        raise NptiError(
            f"The config of {name} does not say how many neurons a layer has (num_hidden_layers {layers}, "
            f"intermediate_size {width}); give --num-layers and --neurons-per-layer."
        )
    return otherwise


def _activation(config: Any) -> str:
    text = config.get_text_config()
    return str(getattr(text, "hidden_act", None) or getattr(text, "activation_function", UNKNOWN))
