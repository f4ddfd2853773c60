"""Cohere's models: square tiles, the thumbnail last; most layers see a window only."""

from __future__ import annotations

from typing import Any

import transformers as hf

from adaptprune.testing.specimen import Specimen, build, clip, reserved, text, tokenizer

SIZES = [(112, 56), (50, 50), (56, 168)]


def _tiles(**options: Any) -> Any:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4, **options
    )


def _text() -> Any:
    return text(
        hf.Cohere2Config,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"] * 2,
        logit_scale=1.0,
        tie_word_embeddings=False,  # tied, it would say its last word again and again
    )


def cohere2_vision(attention: str) -> Specimen:
    """Its own image processor needs torchvision: that of GOT-OCR2 hands over the same, tiles and how many they are."""
    config = hf.Cohere2VisionConfig(
        vision_config=clip(hf.SiglipVisionConfig, size=56), text_config=_text(), image_token_id=reserved(0),
        downsample_factor=2, alignment_intermediate_size=64, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    words = tokenizer("<patch>", "<line>", image_token="<patch>", img_line_break_token="<line>")
    pictures = _tiles()
    pictures.patch_size = 4  # its processor takes the side of a tile in tokens from it: in its checkpoint both are 16
    model = build(hf.Cohere2VisionForConditionalGeneration, config, attention)
    return Specimen(
        model, hf.Cohere2VisionProcessor(pictures, words), "<patch>", sizes=SIZES, image_token_id=reserved(0)
    )


def aya_vision(attention: str) -> Specimen:
    config = hf.AyaVisionConfig(
        vision_config=clip(hf.SiglipVisionConfig, size=56, vision_use_head=False), text_config=_text(),
        image_token_index=reserved(0), downsample_factor=2, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    words = tokenizer(
        "<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_GLOBAL", *(f"TILE_{tile}" for tile in range(1, 5))
    )
    processor = hf.AyaVisionProcessor(_tiles(), words, patch_size=7, img_size=56, downsample_factor=2)
    model = build(hf.AyaVisionForConditionalGeneration, config, attention)
    return Specimen(model, processor, sizes=SIZES, image_token_id=reserved(0))
