"""Mixtures of experts beyond the families' table: rows of the tables, ways of running experts, what is refused."""

from __future__ import annotations

import threading
from types import MethodType

import numpy as np
import pytest
import torch
from adapters_for_tests import make_adapter
from families import IDS, everything, generated_logits, logits
from made_by_hand import every_method
from mixtures import MIXTURES, Mixture, build, steered
from torch import nn

from npti_export import load_personality
from npti_export.errors import NptiError
from npti_export.steering.sites import describe_base_model, find_sites
from npti_export.steering.tables import steering_rows
from npti_export.traits import Pole

OF = {mixture.name: mixture for mixture in MIXTURES}
MIXTRAL = OF["Mixtral"]


@pytest.fixture
def mixtral() -> nn.Module:
    return build(MIXTRAL, "grouped_mm")


@pytest.mark.parametrize("personality", ["wit+", "openness+,wit-0.5", "wit-0.5", "openness+", "extraversion-"])
def test_rows_hold_the_block_beside_and_then_expert_by_expert(personality: str) -> None:
    adapter = every_method()
    spec = adapter.personality(personality)
    layers = adapter.base_model.neurons_per_layer
    expected = [np.zeros(layer.total) for layer in layers]
    for term in spec.terms:
        neurons = adapter.traits[term.trait].poles[term.pole].neurons
        for layer, expert, index, shift in zip(
            neurons.layer.tolist(), neurons.expert.tolist(), neurons.index.tolist(), neurons.shift, strict=True
        ):
            of = layers[layer]
            before = of.dense + of.shared + expert * of.per_expert if expert >= 0 else 0
            expected[layer][before + index] += float(shift) * term.strength
    rows = steering_rows(adapter, spec, [layer.total for layer in layers])
    for row, shifts in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row.shift, shifts)
    assert any(shifts.any() for shifts in expected) or any(row.residual is not None for row in rows)


def test_base_model_of_dense_layers_shared_and_routed_experts() -> None:
    model = build(OF["DeepseekV3"])
    described = describe_base_model(model, find_sites(model))
    first, second = described.neurons_per_layer
    assert (described.num_layers, first.dense, first.experts, first.shared) == (2, 48, 0, 0)
    assert (second.dense, second.experts, second.per_expert) == (0, 4, 24)
    assert second.shared == model.model.layers[1].mlp.shared_experts.down_proj.in_features
    assert described.fingerprint != describe_base_model(*_other(model)).fingerprint


def _other(model: nn.Module) -> tuple[nn.Module, list]:
    with torch.no_grad():
        model.model.layers[1].mlp.experts.gate_up_proj[0, 0, 0] += 1
    return model, find_sites(model)


def test_the_way_of_running_may_change_while_steered(mixtral: nn.Module) -> None:
    """On a GPU ``generate`` itself changes from grouped_mm to batched_mm behind the prompt."""
    adapter = make_adapter(mixtral)
    with steered(MIXTRAL, mixtral, adapter, lambda _out: True):
        expected = logits(mixtral)
    with load_personality(mixtral, "openness+", adapter, positions="all"):
        for implementation in ("batched_mm", "eager", "grouped_mm", "batched_mm"):
            mixtral.set_experts_implementation(implementation)
            assert (logits(mixtral) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["Mixtral", "Llama4Text"])
def test_rows_keep_their_personality_in_beams_and_return_sequences(name: str) -> None:
    model = build(OF[name], "batched_mm")
    adapter = make_adapter(model)
    beams = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    given = {"attention_mask": torch.ones_like(IDS)}
    with load_personality(model, None, adapter) as personality:
        plain = model.generate(IDS, **given, **beams)
        personality.set("openness+")
        whole = model.generate(IDS, **given, **beams)
        assert not torch.equal(whole[:2], plain[:2])
        personality.set(["openness+", None])
        mixed = model.generate(IDS, **given, **beams)
    assert torch.equal(mixed[:2], whole[:2])
    assert torch.equal(mixed[2:], plain[2:])


def test_threads_have_their_own_personality(mixtral: nn.Module) -> None:
    adapter = make_adapter(mixtral)
    specs = ["openness+", None, "neuroticism-", "openness-"]
    found: dict[int, torch.Tensor] = {}
    with load_personality(mixtral, None, adapter, positions="all") as personality:
        expected = []
        for spec in specs:
            personality.set(spec)
            expected.append(logits(mixtral))
        personality.set(None)

        def run(at: int) -> None:
            with personality.using(specs[at]):
                for _ in range(5):
                    found[at] = logits(mixtral)

        threads = [threading.Thread(target=run, args=(at,)) for at in range(len(specs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == len(specs)
    assert all(torch.equal(found[at], expected[at]) for at in range(len(specs)))
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.slow
def test_compiled_before_loading_follows_every_switch(mixtral: nn.Module) -> None:
    adapter = make_adapter(mixtral)
    torch._dynamo.reset()
    compiled = torch.compile(mixtral, backend="eager")
    with torch.no_grad():
        plain = compiled(IDS).logits
        with load_personality(mixtral, "openness+", adapter, positions="all") as personality:
            for spec in ("openness+", None, "neuroticism-"):
                personality.set(spec)
                assert torch.equal(compiled(IDS).logits, mixtral(IDS).logits)
                assert torch.equal(compiled(IDS).logits, plain) == (spec is None)
        assert torch.equal(compiled(IDS).logits, plain)


def test_dropout_leaves_some_shifts_out(mixtral: nn.Module) -> None:
    dropped, kept = (make_adapter(mixtral, dropout=dropout) for dropout in (0.5, 0.0))
    with load_personality(mixtral, "openness+", kept, positions="all"):
        whole = logits(mixtral)
    with load_personality(mixtral, "openness+", dropped, positions="all"):
        assert not torch.equal(logits(mixtral), whole)


def test_memory_is_that_of_all_experts(mixtral: nn.Module) -> None:
    with load_personality(mixtral, "openness+", make_adapter(mixtral), slots=3) as personality:
        assert personality.memory() == 2 * 2 * 3 * 4 * 48 * 4  # layers, cap and shift, slots, experts, width, float32
        assert "model.layers.0.mlp.experts.act_fn" in personality.describe()


def test_routers_are_left_alone(mixtral: nn.Module) -> None:
    """The first layer's router sees the same tokens, so it must choose the same experts."""
    chosen: list[torch.Tensor] = []
    hook = mixtral.model.layers[0].mlp.gate.register_forward_hook(lambda _m, _g, out: chosen.append(out[2]))
    logits(mixtral)
    with load_personality(mixtral, "openness+", make_adapter(mixtral), positions="all"):
        chosen = chosen[:1]
        logits(mixtral)
    hook.remove()
    assert torch.equal(chosen[0], chosen[-1])
    assert type(mixtral.model.layers[0].mlp.gate).__name__ == "MixtralTopKRouter"


def test_an_exception_within_the_experts_leaves_the_next_forward_whole(mixtral: nn.Module) -> None:
    adapter = make_adapter(mixtral)
    before = everything(mixtral)
    with load_personality(mixtral, "openness+", adapter, positions="all"):
        expected = logits(mixtral)
        original = mixtral.model.layers[1].mlp.experts.act_fn.original

        def interrupted(_gate: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

        vars(original)["forward"] = interrupted
        with pytest.raises(KeyboardInterrupt):
            logits(mixtral)
        del vars(original)["forward"]
        assert torch.equal(logits(mixtral), expected)
    assert everything(mixtral) == before


def other_order(self: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Experts in falling order, all in one call of the activation: right, but in an order that nobody is told."""
    expert, order = torch.sort(chosen.flatten(), descending=True)
    token = order // chosen.shape[1]
    gate, up = torch.einsum("rh,rfh->rf", hidden[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
    out = torch.einsum("rf,rhf->rh", self.act_fn(gate) * up, self.down_proj[expert]) * weights.flatten()[order][:, None]
    return torch.zeros_like(hidden).index_add_(0, token, out)


def no_activation(self: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return hidden


@pytest.mark.parametrize(
    ("forward", "sentence"),
    [(other_order, "does not get what the experts that its tokens were routed to"), (no_activation, "no_activation")],
)
def test_experts_that_run_otherwise_are_refused_by_name(mixtral: nn.Module, forward: object, sentence: str) -> None:
    experts = mixtral.model.layers[1].mlp.experts
    experts.forward = MethodType(forward, experts)  # type: ignore[arg-type]
    before = everything(mixtral)
    with pytest.raises(NptiError, match=sentence) as refused:
        find_sites(mixtral)
    assert "model.layers.1.mlp.experts" in str(refused.value)
    assert everything(mixtral) == before


def test_experts_replaced_after_loading_are_an_error(mixtral: nn.Module) -> None:
    with load_personality(mixtral, "openness+", make_adapter(mixtral), positions="all"):
        experts = mixtral.model.layers[1].mlp.experts
        experts.forward = MethodType(no_activation, experts)
        with pytest.raises(NptiError, match="1 of 2 activations"):
            logits(mixtral)


def test_a_way_of_running_that_is_not_known_is_refused(mixtral: nn.Module) -> None:
    adapter = make_adapter(mixtral)
    with load_personality(mixtral, "openness+", adapter, positions="all"):
        mixtral.config._experts_implementation_internal = "sonicmoe"
        with pytest.raises(NptiError, match="run by 'sonicmoe'"):
            logits(mixtral)
        mixtral.set_experts_implementation("eager")
    mixtral.config._experts_implementation_internal = "sonicmoe"
    with pytest.raises(NptiError, match=r"model\.layers\.0\.mlp\.experts are run by 'sonicmoe'"):
        find_sites(mixtral)


def test_a_gate_that_is_not_that_of_gpt_oss_is_refused() -> None:
    model = build(OF["GptOss"])
    experts = model.model.layers[1].mlp.experts
    plain = type(experts)._apply_gate
    experts._apply_gate = MethodType(lambda self, gate_up: 2 * plain(self, gate_up), experts)
    before = everything(model)
    with pytest.raises(NptiError, match="what they apply is not that of gpt-oss"):
        find_sites(model)
    assert everything(model) == before


def test_an_adapter_of_another_number_of_experts_is_refused(mixtral: nn.Module) -> None:
    more = build(Mixture("Mixtral", sizes={"num_local_experts": 6}))
    with pytest.raises(NptiError, match="neurons_per_layer"):
        load_personality(mixtral, "openness+", make_adapter(more))


def test_generated_tokens_alone_are_steered(mixtral: nn.Module) -> None:
    adapter = make_adapter(mixtral)
    plain = generated_logits(mixtral)
    with load_personality(mixtral, "openness+", adapter):
        found = generated_logits(mixtral)
    assert torch.equal(found[:, 0], plain[:, 0])
    assert not torch.equal(found[:, 1], plain[:, 1])
    assert adapter.traits["openness"].poles[Pole.HIGH].positions == "generated"
