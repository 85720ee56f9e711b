"""Tiny vision-language models of many families, each with a prompt, most of them with a picture in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from tiny_models import SIZES
from torch import Tensor, nn

IMAGE = 3
"""The token that stands for a piece of a picture."""

VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHED = {**VISION, "image_size": 16, "patch_size": 4}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 1,
    "out_hidden_size": 32,
    "intermediate_size": 24,
}
QWEN_MARKS = {"image_token_id": IMAGE, "vision_start_token_id": 4, "vision_end_token_id": 6, "video_token_id": 7}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
NARROW = SIZES | {"head_dim": 8}

WORDS = torch.tensor([[5, 9, 8, 7]])
FOUR_PIECES = torch.tensor([[5, IMAGE, IMAGE, IMAGE, IMAGE, 9, 8]])
MARKED = torch.tensor([[4, IMAGE, IMAGE, IMAGE, IMAGE, 6, 9, 8]])

Built = tuple[nn.Module, dict[str, Tensor]]


def picture(size: int) -> Tensor:
    return torch.randn(1, 3, size, size)


def siglip() -> transformers.SiglipVisionConfig:
    return transformers.SiglipVisionConfig(**VISION, image_size=8, patch_size=4)


def qwen_picture() -> dict[str, Tensor]:
    return {
        "input_ids": MARKED,
        "mm_token_type_ids": (MARKED == IMAGE).long(),
        "pixel_values": torch.randn(16, 3 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def llava() -> Built:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, image_size=8, patch_size=4),
        text_config=transformers.LlamaConfig(**SIZES),
        image_token_id=IMAGE,
    )
    inputs = {"input_ids": FOUR_PIECES, "pixel_values": picture(8)}
    return transformers.LlavaForConditionalGeneration(config), inputs


def llava_onevision() -> Built:
    text = transformers.Qwen2Config(**SIZES)
    config = transformers.LlavaOnevisionConfig(text_config=text, vision_config=siglip(), image_token_index=IMAGE)
    return transformers.LlavaOnevisionForConditionalGeneration(config), {"input_ids": WORDS}


def qwen2_vl() -> Built:
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 3, "patch_size": 4}
    config = transformers.Qwen2VLConfig(
        text_config={**SIZES, "rope_parameters": ROPE},
        vision_config={**vision, "spatial_merge_size": 2, "temporal_patch_size": 1},
        **QWEN_MARKS,
    )
    return transformers.Qwen2VLForConditionalGeneration(config), qwen_picture()


def qwen2_5_vl() -> Built:
    config = transformers.Qwen2_5_VLConfig(
        text_config={**SIZES, "rope_parameters": ROPE},
        vision_config={**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]},
        **QWEN_MARKS,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), qwen_picture()


def qwen3_vl() -> Built:
    config = transformers.Qwen3VLConfig(
        text_config={**NARROW, "rope_parameters": {**ROPE, "mrope_interleaved": True}},
        vision_config={**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **QWEN_MARKS,
    )
    return transformers.Qwen3VLForConditionalGeneration(config), qwen_picture()


def glm4v() -> Built:
    marks = {"image_start_token_id": 4, "image_end_token_id": 6, "video_start_token_id": 10, "video_end_token_id": 11}
    config = transformers.Glm4vConfig(
        text_config={**NARROW, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}},
        vision_config={**QWEN_VISION, "image_size": 16},
        image_token_id=IMAGE,
        video_token_id=7,
        **marks,
    )
    return transformers.Glm4vForConditionalGeneration(config), {"input_ids": WORDS}


def gemma3() -> Built:
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**NARROW),
        vision_config=siglip(),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=4,
        eoi_token_index=6,
    )
    inputs = {
        "input_ids": FOUR_PIECES,
        "pixel_values": picture(8),
        "token_type_ids": (FOUR_PIECES == IMAGE).long(),
    }
    return transformers.Gemma3ForConditionalGeneration(config), inputs


def paligemma() -> Built:
    config = transformers.PaliGemmaConfig(
        text_config=transformers.GemmaConfig(**NARROW),
        vision_config=siglip(),
        image_token_index=IMAGE,
        projection_dim=32,
    )
    inputs = {
        "input_ids": FOUR_PIECES,
        "pixel_values": picture(8),
        "token_type_ids": torch.zeros_like(FOUR_PIECES),
    }
    return transformers.PaliGemmaForConditionalGeneration(config), inputs


def mistral3() -> Built:
    config = transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**NARROW),
        vision_config=transformers.PixtralVisionConfig(**PATCHED),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    inputs = {"input_ids": FOUR_PIECES, "pixel_values": picture(16), "image_sizes": torch.tensor([[16, 16]])}
    return transformers.Mistral3ForConditionalGeneration(config), inputs


def internvl() -> Built:
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**SIZES),
        vision_config=transformers.InternVLVisionConfig(**VISION, image_size=[16, 16], patch_size=[4, 4]),
        image_token_id=IMAGE,
        downsample_ratio=0.5,
    )
    inputs = {"input_ids": FOUR_PIECES, "pixel_values": picture(16)}
    return transformers.InternVLForConditionalGeneration(config), inputs


def idefics3() -> Built:
    text = transformers.LlamaConfig(**SIZES)
    config = transformers.Idefics3Config(text_config=text, vision_config=PATCHED, scale_factor=2, image_token_id=IMAGE)
    inputs = {"input_ids": FOUR_PIECES, "pixel_values": picture(16)[None]}
    return transformers.Idefics3ForConditionalGeneration(config), inputs


def smolvlm() -> Built:
    text = transformers.LlamaConfig(**SIZES)
    config = transformers.SmolVLMConfig(text_config=text, vision_config=PATCHED, scale_factor=2, image_token_id=IMAGE)
    inputs = {"input_ids": FOUR_PIECES, "pixel_values": picture(16)[None]}
    return transformers.SmolVLMForConditionalGeneration(config), inputs


def aya_vision() -> Built:
    config = transformers.AyaVisionConfig(
        text_config=transformers.Cohere2Config(**NARROW),
        vision_config=siglip(),
        image_token_index=IMAGE,
        downsample_factor=2,
        vision_feature_select_strategy="full",
        alignment_intermediate_size=24,
    )
    inputs = {"input_ids": torch.tensor([[5, IMAGE, 9, 8]]), "pixel_values": picture(8)}
    return transformers.AyaVisionForConditionalGeneration(config), inputs


def mllama() -> Built:
    """Its cross-attention layers run only where there is a picture, so it is refused."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "vision_output_dim": 32,
        "intermediate_layers_indices": [0],
        "max_num_tiles": 1,
        "supported_aspect_ratios": [[1, 1]],
    }
    text = {**SIZES, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    config = transformers.MllamaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)
    return transformers.MllamaForConditionalGeneration(config), {"input_ids": WORDS}


FAMILIES: list[Callable[[], Built]] = [
    llava,
    llava_onevision,
    qwen2_vl,
    qwen2_5_vl,
    qwen3_vl,
    glm4v,
    gemma3,
    paligemma,
    mistral3,
    internvl,
    idefics3,
    smolvlm,
    aya_vision,
]
