"""GLM's models."""

from __future__ import annotations

from typing import Any

import transformers as hf

from adaptprune.testing.specimen import IMAGE, VIDEO, Specimen, build, no_video, reserved, text, tokenizer
from adaptprune.testing.zoo.grids import SIZES, grid, unbalance

MARKS = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")


def _glm(stem: str, attention: str, decoder: Any, rope: dict[str, Any], **more: Any) -> Specimen:
    """One of GLM's models; the processor is GLM-4.6V's own for it, and GLM-4V's for the others."""
    if stem == "Glm46V":
        from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil as Pictures
    else:
        from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil as Pictures

    vision = {"depth": 3, "num_heads": 4, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64}
    config = getattr(hf, f"{stem}Config")(
        text_config=text(
            decoder, rope_parameters={"rope_type": "default", "rope_theta": 1e4, **rope}, **more
        ).to_dict(),
        vision_config={**vision, "image_size": 56, "patch_size": 7, "initializer_range": 0.2},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=reserved(0),
        image_end_token_id=reserved(1),
        video_start_token_id=reserved(2),
        video_end_token_id=reserved(3),
    )
    processor = getattr(hf, "Glm46VProcessor" if stem == "Glm46V" else "Glm4vProcessor")(
        # sizes count both frames that a picture is read as
        image_processor=Pictures(**grid(size={"shortest_edge": 2 * 14 * 14, "longest_edge": 2 * 14 * 14 * 30})),
        tokenizer=tokenizer(*MARKS),
        video_processor=no_video(),
    )
    model = build(getattr(hf, f"{stem}ForConditionalGeneration"), config, attention)
    unbalance(model)
    return Specimen(model, processor, f"{MARKS[0]} <image> {MARKS[1]}", SIZES)


#: GLM turns half of every head.
HALF = {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}


def glm46v(attention: str) -> Specimen:
    return _glm("Glm46V", attention, hf.Glm4vTextConfig, HALF)


def glm4v(attention: str) -> Specimen:
    return _glm("Glm4v", attention, hf.Glm4vTextConfig, HALF)


def glm4v_moe(attention: str) -> Specimen:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
    return _glm("Glm4vMoe", attention, hf.Glm4vMoeTextConfig, HALF, **experts)


def glm_ocr(attention: str) -> Specimen:
    return _glm("GlmOcr", attention, hf.GlmOcrTextConfig, {"mrope_section": [4, 2, 2]})
