"""What other libraries cost on the same model: a vector added to the residual stream behind every layer.

    .venv-peers/bin/python eval/speed/peers.py --shape 60m

Prints JSON; steering.py runs it. A library that is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from shapes import SHAPES, build, twin
from timing import PLAIN, as_data, decoding, in_turn
from torch import Tensor, nn


def vectors(model: Any) -> dict[int, Tensor]:
    """A small random vector a layer."""
    random = torch.Generator().manual_seed(0)
    shape = (model.config.num_hidden_layers, model.config.hidden_size)
    drawn = 0.1 * torch.randn(shape, generator=random)
    return dict(enumerate(drawn.to(model.device, model.dtype)))


def repeng(model: Any) -> Callable[..., Any]:
    from repeng import ControlModel, ControlVector

    added = vectors(model)
    controlled = ControlModel(model, list(added))
    controlled.set_control(ControlVector("llama", {layer: vector.cpu().numpy() for layer, vector in added.items()}))
    return controlled.generate


def steering_vectors(model: Any) -> Callable[..., Any]:
    from steering_vectors import SteeringVector

    SteeringVector(layer_activations=vectors(model)).patch_activations(model)
    return model.generate


def pyvene(model: Any) -> Callable[..., Any]:
    import pyvene

    interventions = [
        {
            "layer": layer,
            "component": "block_output",
            "source_representation": vector,
            "intervention_type": pyvene.AdditionIntervention,
        }
        for layer, vector in vectors(model).items()
    ]
    wrapped = pyvene.IntervenableModel(pyvene.IntervenableConfig(interventions), model)
    wrapped.set_device(str(model.device))

    def generate(input_ids: Tensor, **keywords: Any) -> Any:
        base = {"input_ids": input_ids, "attention_mask": keywords.pop("attention_mask")}
        return wrapped.generate(base, unit_locations=None, intervene_on_prompt=True, **keywords)

    return generate


def bare_hooks(model: Any) -> Callable[..., Any]:
    """What all of them come to: a forward hook a layer."""
    for (_, vector), layer in zip(vectors(model).items(), model.model.layers, strict=True):
        layer.register_forward_hook(partial(_add, vector))
    return model.generate


def _add(vector: Tensor, _layer: nn.Module, _given: Any, output: Any) -> Any:
    return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector


PEERS = {"repeng": repeng, "steering-vectors": steering_vectors, "pyvene": pyvene, "bare residual hooks": bare_hooks}


def check_it_steers(name: str, plain: Any, ids: Tensor, generate: Callable[..., Any]) -> None:
    """Refuses to measure a library that does nothing."""
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 16, "pad_token_id": 0}
    unsteered, steered = plain.generate(**given, do_sample=False), generate(**given, do_sample=False)
    if torch.equal(unsteered, steered[1] if isinstance(steered, tuple) else steered):
        raise SystemExit(f"{name} steered nothing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="60m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plain = build(given.shape, given.device)
    ids = torch.randint(1, plain.config.vocab_size, (max(given.batches), 8), generator=torch.Generator().manual_seed(1))
    ids = ids.to(given.device)
    ways: dict[str, Callable[..., Any]] = {PLAIN: plain.generate}
    versions = {"transformers": importlib.metadata.version("transformers"), "torch": torch.__version__}
    for name, peer in PEERS.items():
        try:
            generate = peer(twin(plain))
        except ImportError:
            continue
        check_it_steers(name, plain, ids[:1], generate)
        ways[name] = generate
        if name != "bare residual hooks":
            versions[name] = importlib.metadata.version(name)
    speeds = []
    for batch in given.batches:
        measures = {name: partial(decoding, generate, ids[:batch], given.tokens) for name, generate in ways.items()}
        speeds += in_turn("eager", f"decode, batch {batch}", measures, given.seconds)
    print(json.dumps({"versions": versions, "speeds": as_data(speeds)}))


if __name__ == "__main__":
    main()
