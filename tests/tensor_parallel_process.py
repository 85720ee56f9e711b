"""What one of several processes of a tensor-parallel model does; ``torchrun`` starts them.

    torchrun --nproc-per-node 2 tests/tensor_parallel_process.py MODEL OUTPUT

The first process writes to OUTPUT what :func:`results` gives; the tests hold it against one process of their own.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from adapters_for_tests import make_adapter, with_dense_parts
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from npti_export import PersonalityAdapter, load_personality
from npti_export.steering.tables import steering_rows

IDS = torch.tensor([[5, 9, 33, 60], [7, 8, 21, 3]])
SPECS: dict[str, object] = {"steered": "openness+", "mixed": ["neuroticism-0.5", None], "neutral": None}


def adapter_for(model: nn.Module) -> PersonalityAdapter:
    """The same for every process and for one alone: it is drawn from a seed over all neurons of the model."""
    return with_dense_parts(make_adapter(model), 32, layers=[1])


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def results(model: nn.Module, adapter: PersonalityAdapter) -> dict[str, Tensor]:
    """Logits and tokens, unsteered, steered, and when all is taken out again."""
    found = {"plain": logits(model)}
    with load_personality(model, None, adapter, positions="all") as personality:
        for name, spec in SPECS.items():
            personality.set(spec)  # type: ignore[arg-type]
            found[name] = logits(model)
    with load_personality(model, "openness+", adapter):
        found["tokens"] = model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    found["unloaded"] = logits(model)
    return found


def check_share(model: nn.Module, adapter: PersonalityAdapter, rank: int, ranks: int) -> None:
    """Each process holds its part of the caps and shifts, and all of them the vector for the residual stream."""
    assert (adapter.base_model.fingerprint is None) == (rank > 0)  # the first weights are the first process's
    rows = steering_rows(adapter, adapter.personality("openness+"), [48, 48, 48])
    kept = [layer.mlp.down_proj.forward for layer in model.model.layers]  # type: ignore[union-attr]
    with load_personality(model, "openness+", adapter) as personality:
        assert personality.adapter.base_model.num_neurons == 3 * 48
        for layer, row in zip(model.model.layers, rows, strict=True):  # type: ignore[arg-type]
            tables = layer.mlp.act_fn.tables
            own = slice(rank * 48 // ranks, (rank + 1) * 48 // ranks)
            assert torch.equal(tables.shift[1], torch.from_numpy(row.shift[own]).float())
            assert torch.equal(tables.cap[1], torch.from_numpy(row.cap[own]).float())
            if row.residual is not None:
                assert torch.equal(tables.residual[1], torch.from_numpy(row.residual).float())
    assert [layer.mlp.down_proj.forward for layer in model.model.layers] == kept  # type: ignore[union-attr]


def main() -> None:
    folder, output = sys.argv[1:]
    dist.init_process_group("gloo")
    plan = DistributedConfig(tp_plan="auto")
    model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=plan, dtype=torch.float32).eval()
    adapter = adapter_for(model)
    check_share(model, adapter, dist.get_rank(), dist.get_world_size())
    found = results(model, adapter)
    for name, value in found.items():  # what is not split is the same everywhere
        others = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(others, value)
        assert all(torch.equal(value, other) for other in others), name
    if dist.get_rank() == 0:
        save_file(found, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
