"""Vision-language models: the language tower alone is steered, image tokens included where all positions are."""

from __future__ import annotations

import pytest
import torch
import transformers
from equation_4 import steered_by_hooks
from tiny_models import SIZES
from torch import Tensor, nn

from npti_export import load_personality
from npti_export.steering.sites import find_sites
from npti_export.traits import Pole

IMAGE = 3


def llava() -> tuple[nn.Module, dict[str, Tensor]]:
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=8, patch_size=4),
        text_config=transformers.LlamaConfig(**SIZES),
        image_token_id=IMAGE,
    )
    ids = torch.tensor([[5, IMAGE, IMAGE, IMAGE, IMAGE, 9, 8]])
    return transformers.LlavaForConditionalGeneration(config), {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 8, 8),
    }


def qwen2_vl() -> tuple[nn.Module, dict[str, Tensor]]:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 3, "patch_size": 4}
    config = transformers.Qwen2VLConfig(
        text_config={**SIZES, "rope_parameters": rope},
        vision_config={**vision, "spatial_merge_size": 2, "temporal_patch_size": 1},
        image_token_id=IMAGE,
        vision_start_token_id=4,
        vision_end_token_id=5,
        video_token_id=6,
    )
    ids = torch.tensor([[4, IMAGE, IMAGE, IMAGE, IMAGE, 5, 9, 8]])
    return transformers.Qwen2VLForConditionalGeneration(config), {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(16, 3 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


@pytest.mark.parametrize("build", [llava, pytest.param(qwen2_vl, marks=pytest.mark.slow)])
def test_language_tower_alone_is_steered(tiny_adapter, build) -> None:
    torch.manual_seed(0)
    model, inputs = build()
    model.eval()
    language = model.model.language_model.layers
    assert [site.activation for site in find_sites(model)] == [layer.mlp.act_fn for layer in language]
    adapter = tiny_adapter(model)

    def call() -> Tensor:
        with torch.no_grad():
            return model(**inputs).logits

    plain = call()
    with steered_by_hooks([layer.mlp.act_fn for layer in language], adapter, "openness", Pole.HIGH):
        expected = call()
    with load_personality(model, "openness+", adapter, positions="all"):
        assert torch.equal(call(), expected)
    assert torch.equal(call(), plain)
    assert not torch.equal(expected, plain)
