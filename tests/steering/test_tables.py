"""Cap and shift of every slot: equation 4, the strength dial, sums of terms, and a neutral row that changes no bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_models
import torch
from adapters_for_tests import make_adapter
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from npti_export.errors import NptiError
from npti_export.steering.module import SteeredActivation
from npti_export.steering.positions import TokenSteering
from npti_export.steering.sites import Site, find_sites
from npti_export.steering.tables import SteeringRow, SteeringTables, steering_rows
from npti_export.traits import PersonalitySpec, Pole

WIDTHS = [48, 48, 48]
NEUTRAL = torch.tensor([[0]])
STRENGTHS = st.floats(min_value=1e-6, max_value=50.0)


def site_of(width: int, dtype: torch.dtype) -> Site:
    owner = nn.Module()
    return Site(0, "act_fn", owner, "act_fn", width, owner, True, dtype, torch.device("cpu"))


def bits(tensor: Tensor) -> Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def every_number(dtype: torch.dtype) -> Tensor:
    """All numbers of a 16-bit type; of float32 the special ones and a million random bit patterns."""
    if dtype == torch.float32:
        random = torch.randint(-(2**31), 2**31, (1_000_000,), generator=torch.Generator().manual_seed(0))
        special = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e-45, -1e-45, 3.4e38, -3.4e38])
        numbers = torch.cat([random.to(torch.int32).view(dtype), special])
    else:
        numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    return numbers[~numbers.isnan()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neutral_row_returns_every_number_bit_for_bit(dtype: torch.dtype) -> None:
    numbers = every_number(dtype)[None, None]
    tables = SteeringTables(site_of(numbers.shape[-1], dtype), slots=2)
    through = SteeredActivation(nn.Identity(), tables, lambda _gate: TokenSteering(NEUTRAL, 0.0))(numbers)
    assert torch.equal(bits(through), bits(numbers))
    assert (bits(numbers) == bits(torch.tensor(-0.0, dtype=dtype))).any()


def test_row_is_equation_4(tiny_llama, tiny_adapter) -> None:
    adapter = tiny_adapter(tiny_llama)
    rows = steering_rows(adapter, adapter.personality("openness-"), WIDTHS)
    low, high = (adapter.traits["openness"].poles[pole].neurons for pole in (Pole.LOW, Pole.HIGH))
    for layer, row in enumerate(rows):
        cap, shift = np.full(48, np.inf), np.full(48, -0.0)
        cap[high.index[high.layer == layer]] = 0.0
        shift[low.index[low.layer == layer]] = low.shift[low.layer == layer]
        assert np.array_equal(row.cap, cap)
        assert np.array_equal(row.shift, shift)
        assert np.array_equal(np.signbit(row.shift), shift <= 0)  # −0.0 where nothing is added


@given(strength=STRENGTHS)
def test_strength_scales_the_shift_and_softens_the_cap(strength: float, small) -> None:
    at_one = steering_rows(small, small.personality("openness+"), WIDTHS)
    rows = steering_rows(small, small.personality({"openness": strength}), WIDTHS)
    opposite = small.traits["openness"].poles[Pole.LOW].neurons
    for layer, (one, row) in enumerate(zip(at_one, rows, strict=True)):
        np.testing.assert_allclose(row.shift, strength * one.shift, rtol=1e-12)
        capped = opposite.index[opposite.layer == layer]
        expected = opposite.target[opposite.layer == layer].astype(float) * max(0.0, 1.0 - strength) / strength
        np.testing.assert_allclose(row.cap[capped], expected, rtol=1e-12)
        assert np.isfinite(row.cap).sum() == len(capped)


@given(weaker=STRENGTHS, stronger=STRENGTHS)
def test_caps_fall_as_strength_grows(weaker: float, stronger: float, small) -> None:
    weaker, stronger = sorted((weaker, stronger))
    loose = steering_rows(small, small.personality({"openness": weaker}), WIDTHS)
    tight = steering_rows(small, small.personality({"openness": stronger}), WIDTHS)
    assert all((a.cap >= b.cap).all() for a, b in zip(loose, tight, strict=True))


@given(openness=st.floats(-3, 3), neuroticism=st.floats(-3, 3))
def test_several_terms_are_the_smaller_cap_and_the_sum_of_shifts(openness: float, neuroticism: float, small) -> None:
    both = steering_rows(small, small.personality({"neuroticism": neuroticism, "openness": openness}), WIDTHS)
    first = steering_rows(small, small.personality({"openness": openness}), WIDTHS)
    second = steering_rows(small, small.personality({"neuroticism": neuroticism}), WIDTHS)
    for row, a, b in zip(both, first, second, strict=True):
        assert np.array_equal(row.cap, np.minimum(a.cap, b.cap))
        assert np.array_equal(row.shift, a.shift + b.shift)


def test_strength_0_and_no_terms_are_neutral(small) -> None:
    for spec in (PersonalitySpec(), small.personality("openness+0"), small.personality("openness+0,neuroticism-0")):
        for row in steering_rows(small, spec, WIDTHS):
            assert np.isposinf(row.cap).all()
            assert (row.shift == 0).all()
            assert np.signbit(row.shift).all()


def test_caps_none_leaves_the_opposite_pole_alone(tiny_llama, tiny_adapter) -> None:
    adapter = tiny_adapter(tiny_llama, caps="none")
    rows = steering_rows(adapter, adapter.personality("openness+"), WIDTHS)
    assert all(np.isposinf(row.cap).all() for row in rows)
    assert any(row.shift.any() for row in rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounded_once_from_float64(dtype: torch.dtype) -> None:
    # Just above half way between two 16-bit numbers, by less than float32 can hold: rounding twice would go down.
    above_half = [1.0 + 2.0**-8 + 2.0**-40, -1.0 - 2.0**-8 - 2.0**-40, 1.0 + 2.0**-11 + 2.0**-40]
    values = np.array([*above_half, 0.0, 1.0, *np.random.default_rng(0).normal(size=1000)])
    tables = SteeringTables(site_of(len(values), dtype), slots=2)
    tables.fill(1, SteeringRow(values, values))
    nearest = [min(_neighbours(value, dtype), key=lambda number: abs(number - value)) for value in values]
    assert tables.shift[1].tolist() == nearest
    assert tables.cap[1].tolist() == nearest
    assert tables.shift[0].tolist() == [0.0] * len(values)  # the neutral row is left alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neutral_values_are_written_as_they_are(dtype: torch.dtype) -> None:
    tables = SteeringTables(site_of(2, dtype), slots=2)
    tables.fill(1, SteeringRow(np.full(2, np.inf), np.full(2, -0.0)))
    assert torch.equal(bits(tables.cap[1]), bits(tables.cap[0]))
    assert torch.equal(bits(tables.shift[1]), bits(tables.shift[0]))
    assert tables.shift[1].signbit().all()


def _neighbours(value: float, dtype: torch.dtype) -> list[float]:
    near = torch.tensor(value, dtype=dtype)
    beside = [torch.nextafter(near, torch.tensor(edge, dtype=dtype)) for edge in (-math.inf, math.inf)]
    return [float(number) for number in (near, *beside)]


def test_shift_that_does_not_fit_the_dtype_is_refused() -> None:
    tables = SteeringTables(site_of(1, torch.float16), slots=2)
    with pytest.raises(NptiError, match=r"shifts do not fit torch.float16 \(at most 65504\); lower the strength"):
        tables.fill(1, SteeringRow(np.array([np.inf]), np.array([1e6])))


def test_tables_made_in_inference_mode_can_be_written_outside_it() -> None:
    with torch.inference_mode():
        tables = SteeringTables(site_of(1, torch.float32), slots=2)
    tables.fill(1, SteeringRow(np.array([0.0]), np.array([2.0])))
    assert tables.shift[1].tolist() == [2.0]


def test_dropout_drops_that_share_of_the_shifts_and_no_cap() -> None:
    tables = SteeringTables(site_of(10_000, torch.bfloat16), slots=2)
    tables.fill(1, SteeringRow(np.zeros(10_000), np.ones(10_000)))
    activation = torch.full((1, 10, 10_000), 5.0, dtype=torch.bfloat16)
    torch.manual_seed(0)
    moved = SteeredActivation(nn.Identity(), tables, lambda _gate: TokenSteering(1, 0.1))(activation)
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    assert (moved == 0).float().mean() == pytest.approx(0.1, abs=0.005)


def test_site_tables_have_the_activations_width_and_dtype(tiny_llama) -> None:
    site = find_sites(tiny_llama.to(torch.bfloat16))[0]
    tables = SteeringTables(site, slots=5)
    assert tables.cap.shape == tables.shift.shape == (5, 48)
    assert tables.cap.dtype == tables.shift.dtype == torch.bfloat16


@pytest.fixture(scope="module")
def small():
    """An adapter that hypothesis may use for many examples; nothing writes to it."""
    return make_adapter(tiny_models.tiny_llama())
