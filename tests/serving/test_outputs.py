"""Where a served layer takes the dense part, found by moving it, and what is added there, token by token."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from npti_export.errors import NptiError
from npti_export.serving.vllm_layers import LayerRun
from npti_export.serving.vllm_outputs import _place, add_to_output
from npti_export.serving.vllm_sites import ServedSite
from npti_export.steering.output import OutputPlace
from npti_export.steering.sites import Site

HIDDEN, WIDTH = 16, 24
CPU = torch.device("cpu")


class Map(nn.Linear):
    """A map that returns, as vLLM's do, a bias that somebody else might add beside its output."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x), None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = Map(HIDDEN, WIDTH), nn.SiLU(), Map(WIDTH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)[0]))[0]


class Layer(nn.Module):
    """A decoder layer; what becomes of the block's output is left to the kinds below."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm, self.mlp = Map(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), Block()
        self.norm_behind, self.multiplier = nn.LayerNorm(HIDDEN), 0.22

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = x + self.attention(x)[0]
        return self.end(x, self.mlp(self.norm(x)))

    def end(self, x: Tensor, out: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return x + out


class LeftToTheNext(Layer):
    def end(self, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        return out, x


class NormBehind(Layer):
    def end(self, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm_behind(out), x


class Multiplied(Layer):
    def end(self, x: Tensor, out: Tensor) -> Tensor:
        return x + self.multiplier * out


class AddedByEachRank(Layer):
    """Before the reduction of two ranks, each of which is moved."""

    def end(self, x: Tensor, out: Tensor) -> Tensor:
        return x + (out + out)


class NothingAddedAsItIs(Layer):
    def end(self, x: Tensor, out: Tensor) -> Tensor:
        return x + torch.tanh(out)


def run_of(kind: type[Layer], dtype: torch.dtype = torch.float32) -> tuple[ServedSite, LayerRun]:
    torch.manual_seed(0)
    layer = kind().to(dtype)
    site = Site(0, "layer.mlp.act", layer.mlp, "act", WIDTH, layer.mlp.up, False, dtype, CPU)
    run = LayerRun("layer", layer, nullcontext, ((torch.randn(1, HIDDEN, dtype=dtype),), {}))
    return ServedSite(site, nn.functional.silu, 0, WIDTH, "layer"), run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "name", "scale"),
    [
        (Layer, "layer.mlp.down", 1.0),
        (LeftToTheNext, "layer.mlp.down", 1.0),
        (NormBehind, "layer.norm_behind", 1.0),
        (Multiplied, "layer.mlp.down", 0.22),
    ],
)
@torch.inference_mode()
def test_the_place_is_the_last_module_before_the_stream(
    kind: type[Layer], name: str, scale: float, dtype: torch.dtype
) -> None:
    place = _place(*run_of(kind, dtype))
    assert (place.name, place.scale, place.hidden, place.dtype) == (name, scale, HIDDEN, dtype)


@pytest.mark.parametrize("kind", [AddedByEachRank, NothingAddedAsItIs])
@torch.inference_mode()
def test_a_layer_without_such_a_place_is_refused_by_name(kind: type[Layer]) -> None:
    with pytest.raises(NptiError, match=r"block of layer no module's output is .*looked at mlp\.act, mlp\.down, mlp\)"):
        _place(*run_of(kind))


def place_of(module: nn.Module, dtype: torch.dtype = torch.float32) -> OutputPlace:
    return OutputPlace(0, "layer.down", module, HIDDEN, 1.0, dtype, CPU)


@pytest.mark.parametrize("kind", [nn.Linear, Map])
def test_each_token_gets_the_vector_of_its_row(kind: type[nn.Linear]) -> None:
    torch.manual_seed(0)
    module = kind(WIDTH, HIDDEN)
    names, x = list(module.state_dict()), torch.randn(5, WIDTH)
    plain = nn.functional.linear(x, module.weight, module.bias).detach().numpy()
    residual, rows = torch.full((3, HIDDEN), -0.0), torch.zeros(8, dtype=torch.int64)
    add_to_output(place_of(module), residual, rows)
    residual[2] = torch.arange(HIDDEN, dtype=torch.float32)
    rows[:5] = torch.tensor([0, 2, 0, 2, 2])
    for given in (x, x[None]):  # a dimension of 1 in front, as models have that come from transformers
        output = module(given)
        output = output[0] if kind is Map else output
        expected = plain + np.outer([0, 1, 0, 1, 1], np.arange(HIDDEN))
        np.testing.assert_allclose(output.detach().numpy().reshape(5, HIDDEN), expected, rtol=1e-6, atol=1e-6)
    assert list(module.state_dict()) == names
    assert type(module) is kind


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neutral_rows_change_no_bit(dtype: torch.dtype) -> None:
    module, x = Same(), torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, :4] = torch.tensor([-0.0, 0.0, torch.inf, -torch.inf], dtype=dtype)
    add_to_output(
        place_of(module, dtype), torch.full((2, HIDDEN), -0.0, dtype=dtype), torch.zeros(4, dtype=torch.int64)
    )
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(module(x).view(bits), x.view(bits))


@pytest.mark.slow
def test_compiled_it_reads_rows_and_vectors_written_later() -> None:
    torch.manual_seed(0)
    module = Map(WIDTH, HIDDEN)
    residual, rows = torch.full((2, HIDDEN), -0.0), torch.zeros(64, dtype=torch.int64)
    add_to_output(place_of(module), residual, rows)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for tokens in (3, 7, 64):
        x = torch.randn(tokens, WIDTH)
        rows.zero_()
        plain = compiled(x)[0]
        residual[1] = float(tokens)
        rows[1] = 1
        moved = compiled(x)[0] - plain
        torch.testing.assert_close(moved[1], torch.full((HIDDEN,), float(tokens)))
        assert not moved[[0, 2]].any()
