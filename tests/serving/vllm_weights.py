"""Quantised weights as checkpoints hold them, and in the transformers model maps that round as their kernels do."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from engines import Served
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Weights:
    """A format in which the maps of the layers keep their weights and get their inputs.

    Args:
        dtype: Of a weight, and of each number of an input; each row of weights and each token has a scale of its own.
        largest: The number of that type to which the largest number of a token is scaled.
        largest_weight: That to which the largest weight of a row is.
        kind: What compressed-tensors calls the type.
    """

    dtype: torch.dtype
    largest: float
    largest_weight: float
    kind: str

    def packed(self, scaled: Tensor) -> Tensor:
        """Scaled numbers in the format."""
        within = scaled.clamp(-self.largest, self.largest)
        return (within.round() if self.dtype == torch.int8 else within).to(self.dtype)

    def config(self) -> dict[str, object]:
        """What a checkpoint's config says under ``quantization_config``."""
        number = {"num_bits": 8, "type": self.kind, "symmetric": True}
        weights = number | {"strategy": "channel", "dynamic": False}
        inputs = number | {"strategy": "token", "dynamic": True}
        return {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": f"{self.kind}-quantized",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
        }


# Weights up to 63: on a processor without VNNI oneDNN adds two products in 16 bits, which saturates with larger ones,
# and plain vLLM is then off too, by 0.1 nats in a tiny Llama.
INT8 = Weights(torch.int8, 127.0, 63.0, "int")
FP8 = Weights(torch.float8_e4m3fn, 448.0, 448.0, "float")


def scales(rows: Tensor, largest: float) -> Tensor:
    """What brings the largest number of each row to another, [..., 1]."""
    return rows.abs().amax(-1, keepdim=True).clamp(min=1e-12) / largest


class RoundedMap(nn.Linear):
    """A map that rounds what it is given, token by token; its weights are rounded already."""

    weights: Weights

    def forward(self, x: Tensor) -> Tensor:
        scale = scales(x, self.weights.largest)
        return nn.functional.linear(self.weights.packed(x / scale).to(x.dtype) * scale, self.weight, self.bias)


@torch.no_grad()
def quantise(served: Served, weights: Weights) -> None:
    """Quantises the layers of a model that is to be served, in its folder and in memory.

    Args:
        served: Its folder gets a checkpoint as vLLM reads it, its model maps that compute the same without kernels.
        weights: The format.
    """
    state = {name: value.clone() for name, value in served.model.state_dict().items()}  # some are tied
    for name, linear in served.model.named_modules():
        if isinstance(linear, nn.Linear) and name != "lm_head":
            scale = scales(linear.weight, weights.largest_weight)
            state[f"{name}.weight"] = weights.packed(linear.weight / scale)
            state[f"{name}.weight_scale"] = scale
            linear.weight = nn.Parameter(state[f"{name}.weight"].to(scale.dtype) * scale, requires_grad=False)
            linear.__class__ = RoundedMap
            linear.weights = weights
    save_file(state, served.model_folder / "model.safetensors", {"format": "pt"})
    config = served.model_folder / "config.json"
    written = json.loads(config.read_text("utf-8")) | {"quantization_config": weights.config()}
    config.write_text(json.dumps(written), encoding="utf-8")
