"""A model whose weights are quantised, steered and held against plain hooks on the same quantised weights.

``python tests/quantised.py torchao-8`` does it with torchao, in a process of its own: wherever torchao is installed
transformers imports it, which takes seconds and prints lines of its own, so it stands beside the environment.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from adapters_for_tests import make_adapter
from equation_4 import activations_of, steered_by_hooks
from tiny_models import tiny_llama
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from npti_export import load_personality
from npti_export.traits import Pole

IDS = torch.tensor([[5, 9, 33, 60], [7, 8, 21, 3]])
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


def quantised(quantization_config: object, dtype: torch.dtype) -> nn.Module:
    """A small random Llama, saved and loaded as it is asked for; its maps are as wide as a group of 4-bit weights."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_llama(hidden_size=64, intermediate_size=128, num_hidden_layers=2).save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=quantization_config, dtype=dtype, device_map="cpu"
        ).eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def check(model: nn.Module, rows_alone: bool = True) -> None:
    """Steering equals the hooks bit for bit, neutral and unloaded are the model as it was.

    Args:
        model: With quantised weights.
        rows_alone: Whether a row's numbers do not depend on the other rows, unsteered.
    """
    plain, modules = logits(model), list(model.modules())
    tokens = model.generate(IDS, **GREEDY)
    weights = {name: value.clone() for name, value in model.state_dict().items() if type(value) is Tensor}
    adapter = make_adapter(model)
    assert adapter.base_model.fingerprint is None  # what would be hashed are not the checkpoint's numbers
    with steered_by_hooks(activations_of(model), adapter, "openness", Pole.HIGH):
        expected = logits(model)
    assert not torch.equal(expected, plain)
    with load_personality(model, "openness+", adapter, positions="all") as personality:
        assert torch.equal(logits(model), expected)
        personality.set(["openness+", None])
        mixed = logits(model)
        if rows_alone:
            assert torch.equal(mixed[0], expected[0])
            assert torch.equal(mixed[1], plain[1])
        personality.set(None)
        assert torch.equal(logits(model), plain)
    with load_personality(model, "openness+", adapter):
        assert not torch.equal(model.generate(IDS, **GREEDY), tokens)
    assert list(model.modules()) == modules
    assert torch.equal(logits(model), plain)
    assert torch.equal(model.generate(IDS, **GREEDY), tokens)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())


def torchao_config(bits: str) -> object:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import TorchAoConfig

    if bits == "8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


if __name__ == "__main__":
    for precision in (torch.float32, torch.bfloat16):
        check(quantised(torchao_config(sys.argv[1].removeprefix("torchao-")), precision))
    print("equal")
