"""The dense part (residual, hybrid and fitted) in a running model, held against plain forward hooks, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapters_for_tests import with_dense_parts
from equation_4 import activations_of, steered_by_hooks
from families import everything
from tiny_models import tiny
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.steering.output import find_outputs
from npti_export.steering.sites import find_sites
from npti_export.steering.slots import Slots
from npti_export.steering.tables import steering_rows
from npti_export.traits import Pole

IDS = torch.tensor([[5, 9, 33, 60], [7, 8, 21, 3]])
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def adapter(tiny_llama: LlamaForCausalLM, tiny_adapter) -> PersonalityAdapter:
    return with_dense_parts(tiny_adapter(tiny_llama), 32, layers=[0, 2])


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(ids).logits


def vectors_of(adapter: PersonalityAdapter, trait: str, pole: Pole) -> dict[int, Tensor]:
    residual = adapter.traits[trait].poles[pole].residual
    return {int(layer): torch.from_numpy(vector) for layer, vector in zip(residual.layer, residual.vector, strict=True)}


@contextmanager
def added_by_hooks(modules: list[nn.Module], vectors: dict[int, Tensor]) -> Iterator[None]:
    """Within the block every token gets these vectors, rounded to the model's dtype, behind these layers' modules."""
    hooks = [
        modules[layer].register_forward_hook(lambda _module, _given, out, vector=vector: out + vector.to(out.dtype))
        for layer, vector in vectors.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def down_projections(model: LlamaForCausalLM) -> list[nn.Module]:
    return [layer.mlp.down_proj for layer in model.model.layers]


def only_dense(adapter: PersonalityAdapter) -> PersonalityAdapter:
    """The same without neurons that are shifted or capped, as the method ``residual`` with ``caps`` none makes it."""
    for trait in adapter.traits.values():
        poles = {
            pole: replace(
                record, neurons=replace(record.neurons, shift=np.zeros_like(record.neurons.shift)), caps="none"
            )
            for pole, record in trait.poles.items()
        }
        adapter = adapter.with_trait(replace(trait, poles=poles))
    return adapter


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pole", Pole)
def test_residual_alone_equals_plain_hooks(tiny_llama, tiny_adapter, dtype, pole: Pole) -> None:
    tiny_llama.to(dtype)
    adapter = only_dense(with_dense_parts(tiny_adapter(tiny_llama), 32, layers=[1]))
    plain = logits(tiny_llama)
    with added_by_hooks(down_projections(tiny_llama), vectors_of(adapter, "openness", pole)):
        expected = logits(tiny_llama)
    with load_personality(tiny_llama, f"openness{pole.sign}", adapter, positions="all"):
        assert torch.equal(logits(tiny_llama), expected)
    assert torch.equal(logits(tiny_llama), plain)
    assert not torch.equal(expected, plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hybrid_equals_plain_hooks_at_both_places(tiny_llama, tiny_adapter, dtype) -> None:
    tiny_llama.to(dtype)
    adapter = with_dense_parts(tiny_adapter(tiny_llama), 32, layers=[0, 2])
    plain = logits(tiny_llama)
    hooks = added_by_hooks(down_projections(tiny_llama), vectors_of(adapter, "openness", Pole.HIGH))
    with hooks, steered_by_hooks(activations_of(tiny_llama), adapter, "openness", Pole.HIGH):
        expected = logits(tiny_llama)
    with load_personality(tiny_llama, ["openness+", None], adapter, positions="all") as personality:
        mixed = logits(tiny_llama)
        assert torch.equal(mixed[0], expected[0])
        assert torch.equal(mixed[1], plain[1])
        personality.set("openness+")
        assert torch.equal(logits(tiny_llama), expected)
        personality.set(None)
        assert torch.equal(logits(tiny_llama), plain)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_sum_of_terms_is_made_in_float64_and_rounded_once(tiny_llama, tiny_adapter, dtype) -> None:
    tiny_llama.to(dtype)
    adapter = only_dense(with_dense_parts(tiny_adapter(tiny_llama), 32, layers=[1]))
    openness, neuroticism = (vectors_of(adapter, trait, Pole.HIGH)[1] for trait in ("openness", "neuroticism"))
    exact = openness.double() * 0.3 + neuroticism.double() * 1.7  # openness is the first in canonical order
    nearest = [_nearest(value, dtype) for value in exact.tolist()]
    slots = Slots(adapter, find_sites(tiny_llama), 3, None, find_outputs(tiny_llama, find_sites(tiny_llama), adapter))
    (at,) = slots.acquire((adapter.personality("neuroticism+1.7,openness+0.3"),)).slots
    table = slots.tables[1].residual
    assert table.dtype == dtype
    assert table[at].tolist() == nearest
    assert table[0].tolist() == [0.0] * 32
    assert table[0].signbit().all()
    assert slots.tables[0].residual is slots.tables[2].residual is None


def _nearest(value: float, dtype: torch.dtype) -> float:
    near = torch.tensor(value, dtype=dtype)
    edges = (torch.tensor(edge, dtype=dtype) for edge in (-torch.inf, torch.inf))
    return min(
        (float(number) for number in (near, *(torch.nextafter(near, edge) for edge in edges))),
        key=lambda number: abs(number - value),
    )


def test_strength_scales_it(adapter) -> None:
    one = vectors_of(adapter, "openness", Pole.LOW)[2].double().numpy()
    for strength in (0.0625, 0.7, 1.0, 3.0):
        row = steering_rows(adapter, adapter.personality({"openness": -strength}), [48] * 3)[2]
        assert np.array_equal(row.residual, strength * one)
    assert steering_rows(adapter, adapter.personality("openness-0"), [48] * 3)[2].residual is None
    assert steering_rows(adapter, adapter.personality("openness-"), [48] * 3)[1].residual is None


def test_generated_positions_alone_are_moved(tiny_llama, tiny_adapter) -> None:
    adapter = only_dense(with_dense_parts(tiny_adapter(tiny_llama), 32, layers=[1]))
    (vector,) = vectors_of(adapter, "openness", Pole.HIGH).values()

    def hook(_module: nn.Module, _given: object, output: Tensor) -> Tensor:
        return output + vector if output.shape[1] == 1 else output  # the prompt has four tokens

    unsteered = tiny_llama.generate(IDS, **GREEDY)
    handle = down_projections(tiny_llama)[1].register_forward_hook(hook)
    expected = tiny_llama.generate(IDS, **GREEDY)
    handle.remove()
    with load_personality(tiny_llama, "openness+", adapter) as personality:
        assert torch.equal(tiny_llama.generate(IDS, **GREEDY), expected)
        with personality.disable():
            assert torch.equal(tiny_llama.generate(IDS, **GREEDY), unsteered)
    assert not torch.equal(expected, unsteered)


def test_unload_leaves_no_trace(tiny_llama, adapter) -> None:
    own = tiny_llama.model.layers[2].mlp.down_proj.forward
    tiny_llama.model.layers[2].mlp.down_proj.forward = own  # as accelerate puts one there
    before, keys = everything(tiny_llama), list(tiny_llama.state_dict())
    modules = dict(tiny_llama.named_modules())
    with load_personality(tiny_llama, "openness+", adapter):
        assert list(tiny_llama.state_dict()) == keys
        assert tiny_llama.model.layers[0].mlp.down_proj is modules["model.layers.0.mlp.down_proj"]
    assert everything(tiny_llama) == before
    assert tiny_llama.model.layers[2].mlp.down_proj.forward is own


def test_forward_that_was_put_over_it_is_left_alone(tiny_llama, adapter) -> None:
    module, plain = tiny_llama.model.layers[0].mlp.down_proj, logits(tiny_llama)
    with load_personality(tiny_llama, "openness+", adapter, positions="all"):
        steered, ours = logits(tiny_llama), module.forward

        def theirs(given: Tensor) -> Tensor:
            return ours(given)

        module.forward = theirs
        assert torch.equal(logits(tiny_llama), steered)
    assert module.forward is theirs
    assert torch.equal(logits(tiny_llama), plain)


def test_granites_multiplier_is_taken_out(tiny_adapter) -> None:
    model = tiny("Granite", residual_multiplier=0.22)
    adapter = only_dense(with_dense_parts(tiny_adapter(model), 32, layers=[1]))
    vector = vectors_of(adapter, "openness", Pole.HIGH)[1]
    place = find_outputs(model, find_sites(model), adapter)[1]
    assert (place.name, place.scale) == ("model.layers.1.mlp.down_proj", 0.22)
    # Behind the layer, where nothing scales it any more; the sums are made in another order.
    hook = model.model.layers[1].register_forward_hook(lambda _module, _given, out: out + vector)
    expected = logits(model)
    hook.remove()
    with load_personality(model, "openness+", adapter, positions="all"):
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits(model), expected, rtol=1e-2)


def test_layer_without_such_a_place_is_refused_by_name_and_only_when_needed(tiny_adapter) -> None:
    class Halved(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden.tanh()

    model = tiny("Gemma2")
    adapter = tiny_adapter(model)
    model.model.layers[1].post_feedforward_layernorm = Halved()
    dense = only_dense(with_dense_parts(adapter, 32, layers=[1]))
    place = find_outputs(model, find_sites(model), dense)[1]
    assert place.name == "model.layers.1.post_feedforward_layernorm"  # whatever it computes, it is added as it is
    forward = type(model.model.layers[1]).forward
    model.model.layers[1].forward = lambda *given, **named: forward(model.model.layers[1], *given, **named).tanh()
    before = everything(model)
    with pytest.raises(NptiError, match=r"Gemma2ForCausalLM cannot be given .* residual stream: behind .*layers\.1 no"):
        load_personality(model, "openness+", dense)
    assert everything(model) == before
    load_personality(model, "openness+", adapter).unload()
    load_personality(model, "openness+", with_dense_parts(adapter, 32, layers=[0])).unload()


def test_vectors_of_another_width_are_refused(tiny_llama, tiny_adapter) -> None:
    adapter = with_dense_parts(tiny_adapter(tiny_llama), 40, layers=[1])
    with pytest.raises(NptiError, match=r"residual vectors are 40 wide and the residual stream of Llama.* is 32"):
        load_personality(tiny_llama, "openness+", adapter)


def test_vector_that_does_not_fit_the_dtype_is_refused(tiny_llama, tiny_adapter) -> None:
    adapter = only_dense(with_dense_parts(tiny_adapter(tiny_llama.half()), 32, layers=[1]))
    with pytest.raises(NptiError, match=r"residual vectors do not fit torch\.float16 .*; lower the strength"):
        load_personality(tiny_llama, "openness+100000", adapter)


def test_pole_of_zeros_would_do_nothing(tiny_llama, tiny_adapter) -> None:
    adapter = only_dense(tiny_adapter(tiny_llama))
    zero = ResidualShift(np.array([1], np.int16), np.zeros((1, 32), np.float32))
    trait = adapter.traits["openness"]
    poles = {pole: replace(record, residual=zero) for pole, record in trait.poles.items()}
    with pytest.raises(NptiError, match=re.escape("'openness+' would do nothing")):
        load_personality(tiny_llama, "openness+", adapter.with_trait(replace(trait, poles=poles)))


def test_module_replaced_after_loading_is_noticed(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, "openness+", adapter, positions="all"):
        tiny_llama.model.layers[2].mlp.down_proj = nn.Linear(48, 32, bias=False)
        with pytest.raises(NptiError, match=r"of model\.layers\.0\.mlp\.down_proj, .* not all were called"):
            logits(tiny_llama)


def test_tables_move_with_the_model(tiny_llama, tiny_adapter) -> None:
    adapter = with_dense_parts(tiny_adapter(tiny_llama), 32, layers=[1])
    with load_personality(tiny_llama, "openness+", adapter, positions="all") as personality:
        tiny_llama.to(torch.bfloat16)
        assert personality._slots.tables[1].residual.dtype == torch.bfloat16
        assert logits(tiny_llama).dtype == torch.bfloat16


@pytest.mark.slow
def test_compiled_before_loading_follows_every_switch(tiny_llama, adapter) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(tiny_llama, backend="eager")
    with torch.no_grad():
        plain = compiled(IDS).logits
        with load_personality(tiny_llama, "openness+", only_dense(adapter), positions="all") as personality:
            for spec in ("openness+", "openness-", ["openness+", None], None, "neuroticism+0.5"):
                personality.set(spec)
                assert torch.equal(compiled(IDS).logits, tiny_llama(IDS).logits)
                assert torch.equal(compiled(IDS).logits, plain) == (spec is None)
        assert torch.equal(compiled(IDS).logits, plain)
