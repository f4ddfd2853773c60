"""Qwen-VL."""

from __future__ import annotations

from typing import Any

import transformers as hf

from adaptprune.testing.specimen import IMAGE, VIDEO, VOCABULARY, Specimen, build, no_video, text, tokenizer


def _qwen(name: str, attention: str, **vision: Any) -> Specimen:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe"}
    stem = names[name]
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32} if "moe" in name else {}
    new = name.startswith("qwen3")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    config_kind = getattr(hf, f"{stem}Config")
    inner = config_kind().text_config.__class__
    settings = {
        "text_config": text(
            inner, rope_parameters={**rope, **({"mrope_interleaved": True} if new else {})}, **moe
        ).to_dict(),
        "vision_config": {"depth": 4, "num_heads": 4, "patch_size": 7, "spatial_merge_size": 2, **vision},
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VOCABULARY["<|vision_start|>"],
        "vision_end_token_id": VOCABULARY["<|vision_end|>"],
    }
    model = build(getattr(hf, f"{stem}ForConditionalGeneration"), config_kind(**settings), attention)
    processor = hf.Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=7, merge_size=2, size={"shortest_edge": 14 * 14, "longest_edge": 14 * 14 * 30}
        ),
        tokenizer=tokenizer(),
        video_processor=no_video(),
    )
    placeholder = "<|vision_start|> <image> <|vision_end|>"
    return Specimen(model, processor, placeholder, sizes=[(70, 42), (28, 84), (56, 56)])


def qwen2_vl(attention: str) -> Specimen:
    return _qwen("qwen2_vl", attention, embed_dim=32, hidden_size=64, mlp_ratio=2)


def qwen2_5_vl(attention: str) -> Specimen:
    sizes = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "window_size": 28}
    return _qwen("qwen2_5_vl", attention, **sizes, fullatt_block_indexes=[3])


DEEPSTACK = [0, 1, 2]


def qwen3_vl(attention: str) -> Specimen:
    sizes = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "num_position_embeddings": 64}
    return _qwen("qwen3_vl", attention, **sizes, deepstack_visual_indexes=DEEPSTACK)


def qwen3_vl_moe(attention: str) -> Specimen:
    sizes = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "num_position_embeddings": 64}
    return _qwen("qwen3_vl_moe", attention, **sizes, deepstack_visual_indexes=DEEPSTACK)
