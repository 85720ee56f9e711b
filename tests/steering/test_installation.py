"""Ways of calling a model that could go round the tables: each is steered, warned of or refused, never silent."""

from __future__ import annotations

import pytest
import torch
from equation_4 import activations_of, steered_by_hooks
from tiny_models import tiny
from torch import Tensor, nn
from transformers import CompileConfig, LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.errors import NptiError
from npti_export.steering.sites import find_sites
from npti_export.traits import Pole

SPEC = "openness+"
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
IDS = torch.tensor([[5, 9, 33, 60], [7, 8, 21, 3]])


@pytest.fixture
def adapter(tiny_llama: LlamaForCausalLM, tiny_adapter) -> PersonalityAdapter:
    return tiny_adapter(tiny_llama)


@torch.no_grad()
def by_hooks(model: LlamaForCausalLM, adapter: PersonalityAdapter, call) -> Tensor:
    with steered_by_hooks(activations_of(model), adapter, "openness", Pole.HIGH):
        return call()


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2", "Olmo2", "StableLm", "Nemotron", "Phi", "Starcoder2", "GPTNeoX"])
def test_forward_equals_equation_4_in_other_families(tiny_adapter, family: str) -> None:
    model = tiny(family)
    adapter = tiny_adapter(model)

    def call() -> Tensor:
        with torch.no_grad():
            return model(IDS).logits

    plain = call()
    with steered_by_hooks([site.activation for site in find_sites(model)], adapter, "openness", Pole.HIGH):
        expected = call()
    with load_personality(model, SPEC, adapter, positions="all"):
        assert torch.equal(call(), expected)
    assert torch.equal(call(), plain)
    assert not torch.equal(expected, plain)


class Wrapper(nn.Module):
    """A model around a model, as PEFT's is: what it lacks it takes from within."""

    def __init__(self, inner: LlamaForCausalLM) -> None:
        super().__init__()
        self.inner = inner
        self.config = inner.config

    def forward(self, *arguments, **keywords):
        return self.inner(*arguments, **keywords)

    def generate(self, *arguments, **keywords):
        return self.inner.generate(*arguments, **keywords)


def test_inner_decoder_called_directly_is_steered(tiny_llama, adapter) -> None:
    def call() -> Tensor:
        with torch.no_grad():
            return tiny_llama.model(IDS).last_hidden_state

    plain, expected = call(), by_hooks(tiny_llama, adapter, call)
    with load_personality(tiny_llama, SPEC, adapter, positions="all"):
        assert torch.equal(call(), expected)
    with load_personality(tiny_llama, SPEC, adapter), pytest.warns(UserWarning, match="no generated positions"):
        assert torch.equal(call(), plain)


def test_feed_forward_called_on_its_own_is_steered(tiny_llama, adapter) -> None:
    hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))

    def call() -> Tensor:
        return tiny_llama.model.layers[1].mlp(hidden).detach()

    plain, expected = call(), by_hooks(tiny_llama, adapter, call)
    with load_personality(tiny_llama, [SPEC, None], adapter, positions="all"):
        assert torch.equal(call()[0], expected[0])
        assert torch.equal(call()[1], plain[1])
    with load_personality(tiny_llama, SPEC, adapter), pytest.warns(UserWarning, match="no generated positions"):
        assert torch.equal(call(), plain)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradient_checkpointing_recomputes_the_steered_forward(tiny_llama, adapter) -> None:
    def gradient() -> Tensor:
        tiny_llama.zero_grad()
        tiny_llama(IDS).logits.logsumexp(-1).sum().backward()
        return tiny_llama.model.embed_tokens.weight.grad.clone()

    plain = gradient()
    with load_personality(tiny_llama, SPEC, adapter, positions="all"):
        steered = gradient()
        tiny_llama.train()
        tiny_llama.gradient_checkpointing_enable()
        torch.testing.assert_close(gradient(), steered)
    assert not torch.allclose(steered, plain)


def test_generate_of_a_wrapper_and_of_the_model_within(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, SPEC, adapter):
        expected = tiny_llama.generate(IDS, **GREEDY)
    wrapped = Wrapper(tiny_llama)
    with load_personality(wrapped, SPEC, adapter):
        assert torch.equal(wrapped.generate(IDS, **GREEDY), expected)
        assert torch.equal(tiny_llama.generate(IDS, **GREEDY), expected)
    assert "generate" not in vars(wrapped) | vars(tiny_llama)
    with load_personality(tiny_llama, SPEC, adapter):
        assert torch.equal(wrapped.generate(IDS, **GREEDY), expected)


def test_generate_that_goes_round_the_record_is_warned_of(tiny_llama, adapter) -> None:
    plain = tiny_llama.generate(IDS, **GREEDY)
    with load_personality(tiny_llama, SPEC, adapter), pytest.warns(UserWarning, match="no generated positions"):
        assert torch.equal(LlamaForCausalLM.generate(tiny_llama, IDS, **GREEDY), plain)


def test_continuous_batching_is_refused(tiny_llama, adapter) -> None:
    """It runs in a thread of its own, where neither `using` nor the record of what was generated reaches it."""
    with (
        load_personality(tiny_llama, SPEC, adapter),
        pytest.raises(NptiError, match=r"generate_batch.* not steered"),
    ):
        tiny_llama.generate_batch([[5, 9, 33]], max_new_tokens=2)
    assert "init_continuous_batching" not in vars(tiny_llama)


def test_arguments_by_place(tiny_llama, adapter) -> None:
    mask = torch.ones_like(IDS)
    with load_personality(tiny_llama, SPEC, adapter, positions="all"), torch.no_grad():
        by_name = tiny_llama(input_ids=IDS, attention_mask=mask).logits
        assert torch.equal(tiny_llama(IDS, mask).logits, by_name)
        embedded = tiny_llama.get_input_embeddings()(IDS)
        assert torch.equal(tiny_llama(None, inputs_embeds=embedded).logits, tiny_llama(IDS).logits)


def test_forward_within_a_forward_of_generate(tiny_llama, adapter) -> None:
    def again(*_: object) -> None:
        hook.remove()
        with personality.disable():
            inner.append(tiny_llama(IDS[:1]).logits)

    def first_logits() -> Tensor:
        return tiny_llama.generate(IDS, **GREEDY, return_dict_in_generate=True, output_logits=True).logits[0]

    inner: list[Tensor] = []
    with load_personality(tiny_llama, SPEC, adapter, positions="last_prompt+generated") as personality:
        expected = first_logits()
        hook = tiny_llama.model.layers[1].register_forward_pre_hook(again)
        assert torch.equal(first_logits(), expected)
    assert torch.equal(inner[0], tiny_llama(IDS[:1]).logits)


def test_model_that_goes_round_the_tables_is_refused_and_left_as_it_was(tiny_llama, adapter) -> None:
    mlp = tiny_llama.model.layers[1].mlp
    original = mlp.act_fn
    mlp.forward = lambda x: mlp.down_proj(original(mlp.gate_proj(x)) * mlp.up_proj(x))  # calls the object it kept
    with pytest.raises(NptiError, match=r"model\.layers\.1\.mlp\.act_fn was replaced but not called"):
        load_personality(tiny_llama, SPEC, adapter)
    assert mlp.act_fn is original
    assert "generate" not in vars(tiny_llama)


def test_decoder_whose_forward_is_called_by_name_is_refused(tiny_llama, adapter) -> None:
    class Unannounced(LlamaForCausalLM):
        def forward(self, input_ids=None, **_: object):
            return self.model.forward(input_ids)

    tiny_llama.__class__ = Unannounced
    with pytest.raises(NptiError, match="runs without a call of the module that holds its layers"):
        load_personality(tiny_llama, SPEC, adapter)


def test_layers_replaced_after_loading_are_noticed(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, SPEC, adapter):
        for layer in tiny_llama.model.layers:
            layer.mlp.forward = lambda x, mlp=layer.mlp: mlp.down_proj(
                nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
            )
        with pytest.raises(NptiError, match="so nothing was steered: its feed-forward layers were replaced"):
            tiny_llama.generate(IDS, **GREEDY)


def test_tables_move_with_the_model(tiny_llama, adapter, tiny_adapter) -> None:
    with load_personality(tiny_llama, SPEC, adapter, positions="all"), torch.no_grad():
        tiny_llama.to(torch.bfloat16)
        moved = tiny_llama(IDS).logits
        assert tiny_llama.model.layers[0].mlp.act_fn.tables.shift.dtype == torch.bfloat16
    with load_personality(tiny_llama, SPEC, tiny_adapter(tiny_llama), positions="all"), torch.no_grad():
        assert torch.equal(tiny_llama(IDS).logits, moved)


def test_autocast_is_not_widened(tiny_llama, adapter) -> None:
    def call() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return tiny_llama(IDS).logits

    seen: list[torch.dtype] = []
    plain = call()
    with load_personality(tiny_llama, [SPEC, None], adapter, positions="all"):
        tiny_llama.model.layers[0].mlp.act_fn.register_forward_hook(lambda *given: seen.append(given[-1].dtype))
        steered = call()
    assert seen == [torch.bfloat16]
    assert torch.equal(steered[1], plain[1])
    assert not torch.equal(steered[0], plain[0])


def test_training_flag_of_the_activation_is_kept(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, SPEC, adapter):
        assert not any(module.training for module in tiny_llama.modules())


@pytest.mark.slow
def test_compiled_model_follows_every_switch(tiny_llama, adapter) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(tiny_llama, backend="eager")
    with torch.no_grad():
        plain = compiled(IDS).logits  # compiled before anything is loaded
        with load_personality(tiny_llama, SPEC, adapter, positions="all") as personality:
            for spec in (SPEC, "neuroticism-", None, ["openness-", None], SPEC):
                personality.set(spec)
                assert torch.equal(compiled(IDS).logits, tiny_llama(IDS).logits)
                assert torch.equal(compiled(IDS).logits, plain) == (spec is None)
        assert torch.equal(compiled(IDS).logits, plain)


@pytest.mark.slow
def test_generate_that_compiles_its_forward_follows_every_switch(tiny_llama, adapter) -> None:
    torch._dynamo.reset()
    # What generate does by itself on a GPU with a static cache.
    compiling = CompileConfig(backend="eager", mode=None)
    compiling._compile_all_devices = True
    with load_personality(tiny_llama, None, adapter) as personality:
        seen = set()
        for spec in (SPEC, None, "neuroticism-"):
            personality.set(spec)
            usual = tiny_llama.generate(IDS, **GREEDY)
            static = tiny_llama.generate(IDS, **GREEDY, cache_implementation="static", compile_config=compiling)
            assert torch.equal(static, usual)
            seen.add(tuple(usual.flatten().tolist()))
        assert len(seen) == 3
