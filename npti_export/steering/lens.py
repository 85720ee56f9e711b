"""What a direction in the residual stream says: the logit lens, the model's own last norm and head on that direction.

Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from npti_export.errors import NptiError
from npti_export.steering.feed_forward import map_shape
from npti_export.steering.sites import Site, decoder_of, one_token_forward


@dataclass(frozen=True)
class Lens:
    """The last norm and the head of a model.

    Args:
        norm: What runs last before the head.
        head: The map from the residual stream to the vocabulary.
    """

    norm: nn.Module
    head: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> Lens:
        """Finds both by what flows: of the modules beside the decoder layers the one whose output the head receives.

        Raises:
            NptiError: If the model has no head or no such module.

        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> tiny = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        ...                    vocab_size=32)
        >>> Lens.of(LlamaForCausalLM(tiny)).norm
        LlamaRMSNorm((16,), eps=1e-06)
        """
        whole: Any = model
        head = whole.get_output_embeddings()
        if head is None:
            raise NptiError(f"{type(model).__name__} has no output embeddings, so its neurons say nothing in words.")
        received: list[Tensor] = []
        ran: list[tuple[nn.Module, Any]] = []
        beside = [part for part in decoder_of(model).children() if not isinstance(part, nn.ModuleList)]
        hooks = [
            head.register_forward_pre_hook(lambda _module, arguments: received.append(arguments[0])),
            *(part.register_forward_hook(lambda part, _arguments, out: ran.append((part, out))) for part in beside),
        ]
        try:
            one_token_forward(model)
        finally:
            for hook in hooks:
                hook.remove()
        for part, output in reversed(ran):
            if received and isinstance(output, Tensor) and torch.equal(output.flatten(), received[-1].flatten()):
                return cls(part, head)
        raise NptiError(f"{type(model).__name__} has no last norm whose output its head receives.")

    def read(self, directions: Tensor) -> Tensor:
        """Logits that a direction adds, up to a common factor: what the norm's and the head's biases give is taken off.

        Args:
            directions: In the residual stream, [n, hidden].

        Returns:
            float32 [n, vocabulary] on the CPU.
        """
        weight = next(chain(self.norm.parameters(), self.head.parameters()))  # a norm may have none (OLMo)
        directions = directions.to(weight)
        with torch.inference_mode():
            moved, still = (self.head(self.norm(at)) for at in (directions, torch.zeros_like(directions[:1])))
            logits: Tensor = moved - still
        return logits.float().cpu()


def narrow_map(site: Site) -> nn.Module:
    """The linear map from a layer's neurons back to the residual stream.

    Raises:
        NptiError: If the layer's neurons are experts', or two maps could be it.
    """
    if site.experts is not None:
        raise NptiError(f"{site.name} are experts, whose neurons cannot be put into words in this release.")
    shapes = [(child, map_shape(child)) for child in site.owner.children() if child is not site.gate]
    found = [child for child, shape in shapes if shape and shape[0] == site.neurons]
    if len(found) > 1:  # hidden and neurons of one size: the map back comes behind the wide ones
        found = found[-1:]
    if not found:
        raise NptiError(f"Beside {site.name} there is no map from {site.neurons} neurons back.")
    return found[0]


def output_directions(site: Site, index: Tensor) -> Tensor:
    """What each neuron writes into the residual stream for every 1 that it gives, float32 [n, hidden] on the CPU.

    Args:
        site: The layer's activation.
        index: Neurons of the layer, int64 [n].

    Raises:
        NptiError: If the map back is quantised or not on this machine, or the layer's neurons are experts'.
    """
    narrow = narrow_map(site)
    weight = getattr(narrow, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.device.type == "meta":
        raise NptiError(
            f"The weights behind {site.name} are quantised or elsewhere; load the model whole to explain it."
        )
    # Linear holds [hidden, neurons], GPT-2's Conv1D the same transposed.
    columns = weight[index.to(weight.device)] if hasattr(narrow, "nf") else weight[:, index.to(weight.device)].T
    return columns.detach().float().cpu()
