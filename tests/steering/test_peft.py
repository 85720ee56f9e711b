"""PEFT LoRA on the same model: in either order, switched on and off, merged, taken out, saved and trained."""

from __future__ import annotations

import pytest
import torch
from equation_4 import activations_of, steered_by_hooks
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.errors import NptiError
from npti_export.steering.thinking import Thinking
from npti_export.traits import Pole

peft = pytest.importorskip("peft")

SPEC = "openness+"
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
IDS = torch.tensor([[5, 9, 33, 60], [7, 8, 21, 3]])
TARGETS = ["q_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def adapter(tiny_llama: LlamaForCausalLM, tiny_adapter) -> PersonalityAdapter:
    return tiny_adapter(tiny_llama)


def with_lora(model: LlamaForCausalLM) -> nn.Module:
    """A LoRA whose weights are not zero."""
    lora = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"))
    random = torch.Generator().manual_seed(0)
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    return lora.eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def under_hooks(within: LlamaForCausalLM, adapter: PersonalityAdapter, model: nn.Module) -> Tensor:
    with steered_by_hooks(activations_of(within), adapter, "openness", Pole.HIGH):
        return logits(model)


@pytest.mark.parametrize("on", ["wrapper", "model within"])
def test_personality_on_a_model_with_lora(tiny_llama, adapter, on: str) -> None:
    lora = with_lora(tiny_llama)
    plain, expected, tokens = logits(lora), under_hooks(tiny_llama, adapter, lora), lora.generate(IDS, **GREEDY)
    with lora.disable_adapter():
        without_lora = under_hooks(tiny_llama, adapter, lora)
    with load_personality(lora if on == "wrapper" else tiny_llama, SPEC, adapter, positions="all"):
        assert torch.equal(logits(lora), expected)
        with lora.disable_adapter():
            assert torch.equal(logits(lora), without_lora)
    assert torch.equal(logits(lora), plain)
    with load_personality(lora if on == "wrapper" else tiny_llama, [SPEC, None], adapter):
        steered = lora.generate(IDS, **GREEDY)
    assert torch.equal(steered[1], tokens[1])
    assert not torch.equal(steered[0], tokens[0])
    assert torch.equal(lora.generate(IDS, **GREEDY), tokens)
    assert not torch.equal(without_lora, expected)


def test_lora_on_a_model_with_a_personality(tiny_llama, adapter) -> None:
    base = logits(tiny_llama)
    personality = load_personality(tiny_llama, SPEC, adapter)
    lora = with_lora(tiny_llama)
    steered = lora.generate(IDS, **GREEDY)
    personality.unload()
    plain, tokens = logits(lora), lora.generate(IDS, **GREEDY)
    assert not torch.equal(steered, tokens)
    with load_personality(lora, SPEC, adapter):
        assert torch.equal(lora.generate(IDS, **GREEDY), steered)
    assert torch.equal(logits(lora), plain)
    assert torch.equal(logits(lora.unload()), base)


def test_lora_taken_out_or_merged_while_steered(tiny_llama, adapter) -> None:
    base, steered_base = logits(tiny_llama), under_hooks(tiny_llama, adapter, tiny_llama)
    lora = with_lora(tiny_llama)
    expected = under_hooks(tiny_llama, adapter, lora)
    personality = load_personality(lora, SPEC, adapter, positions="all")
    lora.merge_adapter()
    torch.testing.assert_close(logits(lora), expected, rtol=1e-4, atol=1e-4)
    lora.unmerge_adapter()
    lora.unload()
    torch.testing.assert_close(logits(tiny_llama), steered_base, rtol=1e-4, atol=1e-4)
    personality.unload()
    torch.testing.assert_close(logits(tiny_llama), base, rtol=1e-4, atol=1e-4)


def test_lora_saved_while_steered_is_the_lora_alone(tiny_llama, adapter, tmp_path) -> None:
    lora = with_lora(tiny_llama)
    lora.save_pretrained(tmp_path / "before")
    with load_personality(lora, SPEC, adapter):
        lora.save_pretrained(tmp_path / "steered")
    before, steered = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "steered"))
    assert before.keys() == steered.keys()
    assert all(torch.equal(before[key], steered[key]) for key in before)


def test_lora_trained_on_a_steered_model(tiny_llama, adapter) -> None:
    lora = with_lora(tiny_llama)

    def gradients() -> dict[str, Tensor]:
        lora.zero_grad()
        lora(input_ids=IDS, labels=IDS).loss.backward()
        return {name: at.grad.clone() for name, at in lora.named_parameters() if at.grad is not None}

    plain = gradients()
    with steered_by_hooks(activations_of(tiny_llama), adapter, "openness", Pole.HIGH):
        expected = gradients()
    with load_personality(lora, SPEC, adapter, positions="all"):
        steered = gradients()
    assert steered.keys() == expected.keys()
    assert all("lora_" in name for name in steered)
    for name, gradient in steered.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(gradient, plain[name]) for name, gradient in steered.items())


def test_prompt_tuning_is_refused_where_only_generated_tokens_are_steered(tiny_llama, adapter) -> None:
    """It puts tokens before the prompt, so that the last ones of the prompt would be taken for generated."""
    tuned = peft.get_peft_model(tiny_llama, peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    refused = pytest.raises(NptiError, match="cannot be told which tokens were generated")
    with load_personality(tiny_llama, SPEC, adapter):
        with refused:
            tuned.generate(input_ids=IDS, **GREEDY)
        assert tiny_llama.generate(IDS, **GREEDY).shape == (2, 12)


def test_thinking_of_a_model_with_lora(tiny_llama, adapter) -> None:
    """Which tokens are thinking is known though PEFT puts a method of its own in the way."""
    lora, ids = with_lora(tiny_llama), torch.tensor([[5, 62, 33, 60], [7, 62, 21, 63]])
    plain = lora.generate(ids, **GREEDY)
    with load_personality(lora, SPEC, adapter):
        everywhere = lora.generate(ids, **GREEDY)
    with load_personality(lora, SPEC, adapter, positions="answer", thinking=Thinking(62, 63)):
        answer = lora.generate(ids, **GREEDY)
    assert torch.equal(answer[0], plain[0])  # its thinking is not over
    assert torch.equal(answer[1], everywhere[1])
    assert not torch.equal(everywhere, plain)
