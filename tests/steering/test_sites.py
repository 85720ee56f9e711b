"""Where the neurons sit: found by structure in many families, refused by name where they are not understood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import SIZES, tiny
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from npti_export.errors import NptiError
from npti_export.steering.sites import base_model_id, decoder_of, describe_base_model, find_sites


@pytest.mark.parametrize(
    ("family", "activation", "gated"),
    [
        ("Llama", "model.layers.1.mlp.act_fn", True),
        ("Qwen2", "model.layers.1.mlp.act_fn", True),
        ("Qwen3", "model.layers.1.mlp.act_fn", True),
        ("Mistral", "model.layers.1.mlp.act_fn", True),
        ("Gemma2", "model.layers.1.mlp.act_fn", True),
        ("Gemma3Text", "model.layers.1.mlp.act_fn", True),
        ("Olmo2", "model.layers.1.mlp.act_fn", True),
        ("StableLm", "model.layers.1.mlp.act_fn", True),
        ("Nemotron", "model.layers.1.mlp.act_fn", False),
        ("Phi", "model.layers.1.mlp.activation_fn", False),
        ("Starcoder2", "model.layers.1.mlp.act", False),
        ("GPTNeoX", "gpt_neox.layers.1.mlp.act", False),
    ],
)
def test_found_whatever_the_activation_is_called(family: str, activation: str, gated: bool) -> None:
    model = tiny(family)
    sites = find_sites(model)
    assert [site.layer for site in sites] == [0, 1]
    assert sites[1].name == activation
    assert sites[1].activation is model.get_submodule(activation)
    assert {(site.width, site.gated, site.dtype) for site in sites} == {(48, gated, torch.float32)}


def test_gate_is_the_map_that_reaches_the_activation(tiny_llama: LlamaForCausalLM) -> None:
    mlp = tiny_llama.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.up_proj(x)) * mlp.gate_proj(x))
    assert find_sites(tiny_llama)[1].gate is mlp.up_proj


def test_encoder_decoder_is_refused() -> None:
    config = transformers.T5Config(d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8, vocab_size=32)
    with pytest.raises(NptiError, match="T5ForConditionalGeneration cannot be steered: it is an encoder"):
        find_sites(transformers.T5ForConditionalGeneration(config))


def test_model_without_a_transformers_config_is_refused() -> None:
    with pytest.raises(NptiError, match="Sequential is no transformers model"):
        find_sites(nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4)))


def test_mlp_that_goes_round_its_activation_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    mlp = tiny_llama.model.layers[2].mlp
    mlp.forward = lambda x: mlp.down_proj(nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))  # as Liger's does
    with pytest.raises(NptiError, match=r"activation model\.layers\.2\.mlp\.act_fn did not run as expected"):
        find_sites(tiny_llama)


def test_one_activation_shared_by_all_layers_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    shared = nn.SiLU()
    for layer in tiny_llama.model.layers:
        layer.mlp.act_fn = shared
    with pytest.raises(NptiError, match=r"calls on widths \[48, 48, 48\] were seen"):
        find_sites(tiny_llama)


def test_gate_may_be_changed_before_the_activation(tiny_llama: LlamaForCausalLM) -> None:
    mlp = tiny_llama.model.layers[0].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(2 * mlp.up_proj(x)) * mlp.gate_proj(x))
    assert find_sites(tiny_llama)[0].gate is mlp.up_proj


def test_activation_that_is_not_what_the_map_back_is_given_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    mlp = tiny_llama.model.layers[0].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) + mlp.up_proj(x))
    with pytest.raises(NptiError, match=r"model\.layers\.0\.mlp\.act_fn does not go on with the activation times"):
        find_sites(tiny_llama)


def test_plain_layer_whose_activation_is_multiplied_is_refused() -> None:
    model = tiny("Nemotron")
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: mlp.down_proj(2 * mlp.act_fn(mlp.up_proj(x)))
    with pytest.raises(NptiError, match=r"leaves the activation model\.layers\.1\.mlp\.act_fn is not what the block's"):
        find_sites(model)


class FunctionalMlp(nn.Module):
    """A gated block without an activation module, whose function may be any."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.narrow = nn.Linear(48, 32)
        self.one, self.other = nn.Linear(32, 48), nn.Linear(32, 48)
        self.function = function

    def forward(self, hidden: Tensor) -> Tensor:
        return self.narrow(self.one(hidden) * self.function(self.other(hidden)))


@pytest.mark.parametrize("function", [nn.functional.silu, nn.functional.gelu, nn.functional.relu])
def test_function_is_told_by_its_numbers(tiny_llama: LlamaForCausalLM, function: Callable[[Tensor], Tensor]) -> None:
    block = tiny_llama.model.layers[1].mlp = FunctionalMlp(function)
    site = find_sites(tiny_llama)[1]
    assert (site.gate, site.name, list(block.named_children())[-1][0]) == (
        block.other,
        "model.layers.1.mlp.act_fn",
        "other",
    )
    given = torch.linspace(-3, 3, 48)[None, None]
    assert torch.equal(site.activation(given), function(given))


def test_function_held_where_the_module_would_stand_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    block = tiny_llama.model.layers[1].mlp = FunctionalMlp(nn.functional.silu)
    block.act_fn = nn.functional.silu
    with pytest.raises(NptiError, match=r"layers\.1\.mlp .* holds something else as act_fn"):
        find_sites(tiny_llama)
    assert block.act_fn is nn.functional.silu


def test_unknown_function_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.model.layers[1].mlp = FunctionalMlp(torch.sin)
    with pytest.raises(NptiError, match=r"mlp \(FunctionalMlp\) has no activation module, and what it computes"):
        find_sites(tiny_llama)


def test_watched_function_runs_as_a_module_for_as_long(tiny_llama: LlamaForCausalLM) -> None:
    block = tiny_llama.model.layers[1].mlp = FunctionalMlp(nn.functional.silu)
    seen: list[Tensor] = []
    ids = torch.tensor([[5, 9, 33]])
    with torch.no_grad():
        plain = tiny_llama(ids).logits
        watch = find_sites(tiny_llama)[1].watch(lambda _module, _given, output: seen.append(output))
        assert torch.equal(tiny_llama(ids).logits, plain)
        watch.remove()
        assert torch.equal(tiny_llama(ids).logits, plain)
    assert [tensor.shape for tensor in seen] == [(1, 3, 48)]
    assert "forward" not in vars(block)
    assert not hasattr(block, "act_fn")


def test_model_that_fails_on_one_token_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.model.layers[0].mlp.up_proj.weight.data = torch.zeros(48, 31)
    with pytest.raises(NptiError, match="LlamaForCausalLM cannot be steered: a forward on one token fails with Runtim"):
        find_sites(tiny_llama)


def test_vision_tower_with_as_many_layers_is_passed_by() -> None:
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=8, patch_size=4),
        text_config=transformers.LlamaConfig(**SIZES),
        image_token_id=3,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    assert [site.name for site in find_sites(model)] == [
        "model.language_model.layers.0.mlp.act_fn",
        "model.language_model.layers.1.mlp.act_fn",
    ]
    assert decoder_of(model) is model.model.language_model


def test_finding_leaves_no_trace(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.train()
    random = torch.get_rng_state()
    before = {name: dict(module.__dict__) for name, module in tiny_llama.named_modules()}
    find_sites(tiny_llama)
    assert torch.equal(torch.get_rng_state(), random)
    assert tiny_llama.training
    assert all(parameter.grad is None for parameter in tiny_llama.parameters())
    for name, module in tiny_llama.named_modules():
        assert module.__dict__.keys() == before[name].keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", "org/name"),
        ("name", "name"),
        ("/somewhere/models/name", "name"),
        ("./name", "name"),
        ("models/org/name/", "name"),
        ("", "llama"),
    ],
)
def test_base_model_id(tiny_llama: LlamaForCausalLM, name: str, expected: str) -> None:
    tiny_llama.config.name_or_path = name
    assert base_model_id(tiny_llama) == expected


def test_base_model_id_of_a_folder_that_looks_like_a_hub_id(tiny_llama: LlamaForCausalLM) -> None:
    Path("models/name").mkdir(parents=True)
    tiny_llama.config.name_or_path = "models/name"
    assert base_model_id(tiny_llama) == "name"


def test_description(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.config.name_or_path = "org/name"
    described = describe_base_model(tiny_llama, find_sites(tiny_llama))
    assert (described.id, described.model_type, described.num_layers) == ("org/name", "llama", 3)
    assert (described.activation, described.gated, described.num_neurons) == ("silu", True, 3 * 48)


def test_fingerprint_tells_weights_apart_and_not_dtypes(tiny_llama: LlamaForCausalLM) -> None:
    def fingerprint() -> str | None:
        return describe_base_model(tiny_llama, find_sites(tiny_llama)).fingerprint

    first = fingerprint()
    tiny_llama.to(torch.bfloat16)
    assert fingerprint() == first
    tiny_llama.model.layers[2].mlp.gate_proj.weight.data[0, 0] += 1
    assert fingerprint() != first
