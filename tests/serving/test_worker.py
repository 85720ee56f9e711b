"""A worker's part that needs no engine: options that are refused, the layout that is noted, and the start-up proof."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from npti_export.errors import NptiError
from npti_export.serving.activation import ServedActivation
from npti_export.serving.slots import TokenSlots
from npti_export.serving.vllm_layers import LayerRun
from npti_export.serving.vllm_outputs import add_to_output
from npti_export.serving.vllm_sites import ServedSite
from npti_export.serving.vllm_worker import LAYOUT_KEY, check_parallelism, note_layout, prove
from npti_export.steering.output import OutputPlace
from npti_export.steering.sites import Site
from npti_export.steering.tables import SteeringTables

HIDDEN, WIDTH = 8, 12
CPU = torch.device("cpu")


def config(**parallel: object) -> SimpleNamespace:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**{"pipeline_parallel_size": 1, "enable_dbo": False} | parallel),
        kv_transfer_config=None,
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(enable_sp=False)),
        scheduler_config=SimpleNamespace(max_num_seqs=7),
        additional_config={"another": 1},
    )


def test_options_that_split_a_step_are_refused_by_name() -> None:
    check_parallelism(config(tensor_parallel_size=2))
    with pytest.raises(NptiError, match="--pipeline-parallel-size"):
        check_parallelism(config(pipeline_parallel_size=2))
    with pytest.raises(NptiError, match="--prefill-context-parallel-size"):
        check_parallelism(config(prefill_context_parallel_size=2))
    with pytest.raises(NptiError, match="--enable-dbo"):
        check_parallelism(config(enable_dbo=True))
    with pytest.raises(NptiError, match="--ubatch-size"):
        check_parallelism(config(ubatch_size=2))
    for name, value, said in (
        ("kv_transfer_config", object(), "--kv-transfer-config"),
        ("cache_config", SimpleNamespace(kv_sharing_fast_prefill=True), "--kv-sharing-fast-prefill"),
        ("compilation_config", SimpleNamespace(pass_config=SimpleNamespace(enable_sp=True)), "enable_sp"),
    ):
        refused = config()
        setattr(refused, name, value)
        with pytest.raises(NptiError, match=said):
            check_parallelism(refused)


def test_the_cache_of_graphs_is_told_what_stands_in_the_model() -> None:
    noted = config()
    note_layout(noted, [0, 2])
    assert noted.additional_config == {"another": 1, LAYOUT_KEY: {"rows": 8, "dense": [0, 2]}}
    noted.additional_config = object()
    with pytest.raises(NptiError, match="no JSON object"):
        note_layout(noted, [])


class Layer(nn.Module):
    """A gated layer; ``round`` says which of its parts it goes round."""

    def __init__(self, round: str = "") -> None:
        super().__init__()
        self.round = round
        self.gate_up, self.act, self.down = nn.Linear(HIDDEN, 2 * WIDTH), nn.SiLU(), nn.Linear(WIDTH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate_up(x)
        fused = nn.functional.silu(y[..., :WIDTH]) * y[..., WIDTH:]
        y = fused if self.round == "act" else self.act(y)
        return x + (nn.functional.linear(y, self.down.weight, self.down.bias) if self.round == "down" else self.down(y))


def steered(round: str) -> tuple[list[ServedSite], list[SteeringTables], TokenSlots, list[LayerRun]]:
    torch.manual_seed(0)
    layer = Layer(round)
    site = Site(0, "layer.act", layer, "act", WIDTH, layer.gate_up, True, torch.float32, CPU)
    place = OutputPlace(0, "layer.down", layer.down, HIDDEN, 1.0, torch.float32, CPU)
    tables, tokens = SteeringTables(site, 3, place), TokenSlots(4, "cpu")
    layer.act = ServedActivation(nn.functional.silu, True, tables, tokens.buffer)
    assert tables.residual is not None
    add_to_output(place, tables.residual, tokens.buffer)
    run = LayerRun("layer", layer, nullcontext, ((torch.randn(1, HIDDEN),), {}))
    return [ServedSite(site, nn.functional.silu, 0, WIDTH, "layer")], [tables], tokens, [run]


def test_the_proof_leaves_everything_neutral() -> None:
    sites, tables, tokens, runs = steered("")
    before = runs[0].again()[0]
    prove(sites, tables, tokens, runs)
    assert torch.equal(runs[0].again()[0], before)
    assert not tokens.buffer.any()
    for table in (tables[0].shift, tables[0].residual):
        assert table is not None
        assert torch.equal(table.view(torch.int32), torch.full_like(table, -0.0).view(torch.int32))


@pytest.mark.parametrize("part", ["act", "down"])
def test_a_layer_that_goes_round_what_was_put_there_is_refused(part: str) -> None:
    with pytest.raises(NptiError, match=rf"^layer\.{part} was replaced and its layer goes round it"):
        prove(*steered(part))
