"""The activation of a served model against equation 4 by hand, neutral rows bit for bit, and compiled."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from npti_export.serving.activation import ServedActivation
from npti_export.steering.sites import Site
from npti_export.steering.tables import SteeringRow, SteeringTables

WIDTH = 24


def made(
    gated: bool, dtype: torch.dtype = torch.float32
) -> tuple[ServedActivation, torch.Tensor, np.ndarray, np.ndarray]:
    """A steered SiLU with a personality in row 2, its rows of tokens, and that personality's cap and shift."""
    site = Site(0, "act", nn.Module(), "act", WIDTH, nn.Module(), gated, dtype, torch.device("cpu"))
    tables = SteeringTables(site, 3)
    random = np.random.default_rng(0)
    cap = np.where(random.random(WIDTH) < 0.3, 0.0, np.inf)
    shift = np.where(random.random(WIDTH) < 0.3, random.uniform(0.1, 1.0, WIDTH), -0.0)
    tables.fill(2, SteeringRow(cap, shift))
    rows = torch.zeros(64, dtype=torch.int64)
    return ServedActivation(nn.functional.silu, gated, tables, rows), rows, cap, shift


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("gated", [True, False])
def test_each_token_is_moved_by_its_row(gated: bool) -> None:
    activation, rows, cap, shift = made(gated)
    rows[1:4] = torch.tensor([2, 0, 2])
    x = torch.randn(5, WIDTH * (1 + gated), generator=torch.Generator().manual_seed(1))
    expected = silu(x.double().numpy()[:, :WIDTH])
    for token in (1, 3):
        expected[token] = np.minimum(expected[token], cap) + shift
    if gated:
        expected = expected * x.double().numpy()[:, WIDTH:]
    np.testing.assert_allclose(activation(x).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neutral_rows_change_no_bit(dtype: torch.dtype) -> None:
    activation, _, _, _ = made(True, dtype)
    x = torch.randn(64, 2 * WIDTH, generator=torch.Generator().manual_seed(2)).to(dtype)
    x[0, :4] = torch.tensor([-0.0, 0.0, torch.inf, -torch.inf], dtype=dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    plain = nn.functional.silu(x[:, :WIDTH]) * x[:, WIDTH:]
    same = activation(x).view(bits) == plain.view(bits)
    assert bool((same | plain.isnan()).all())


def test_nothing_of_it_is_in_a_state_dict() -> None:
    assert not made(True)[0].state_dict()


@pytest.mark.slow
def test_compiled_for_any_number_of_tokens_it_reads_rows_written_later() -> None:
    activation, rows, _, _ = made(True)
    compiled = torch.compile(activation, fullgraph=True, dynamic=True)
    for tokens in (3, 7, 64):
        x = torch.randn(tokens, 2 * WIDTH, generator=torch.Generator().manual_seed(tokens))
        rows.zero_()
        plain = activation(x)
        torch.testing.assert_close(compiled(x), plain)
        rows[: tokens - 1] = 2
        steered = compiled(x)
        torch.testing.assert_close(steered, activation(x))
        assert not torch.allclose(steered[:-1], plain[:-1])
        torch.testing.assert_close(steered[-1], plain[-1])


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not there; make test-vllm sets it up")
def test_what_vllm_fuses_with_a_quantisation_it_does_not_take_this_for() -> None:
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.fusion import fused_act_quant
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8StaticTensorSym

    # Llama's layers call it; a fused kernel is looked up by the activation's type and the next map's input format.
    assert (SiluAndMul, kFp8StaticTensorSym) in fused_act_quant._FUSED_ACT_QUANT
    activation, rows, _, _ = made(True)
    rows[:3] = torch.tensor([2, 0, 2])
    down = nn.Linear(WIDTH, 8)
    down._input_quant_key = kFp8StaticTensorSym
    x = torch.randn(3, 2 * WIDTH, generator=torch.Generator().manual_seed(3))
    assert torch.equal(fused_act_quant.maybe_fused_act_quant(activation, x, down), activation(x))
