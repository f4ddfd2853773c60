"""Liquid's models: short convolutions between the attention layers."""

from __future__ import annotations

import transformers as hf

from adaptprune.testing.specimen import IMAGE, Specimen, build, clip, text, tokenizer
from adaptprune.testing.zoo.without_torchvision import image_processor

MARKS = ("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
MARKED_TILES = [f"<|img_row_{row}_col_{column}|>" for row in (1, 2, 3) for column in (1, 2, 3)]


def lfm2_vl(attention: str) -> Specimen:
    config = hf.Lfm2VlConfig(
        vision_config=clip(hf.Siglip2VisionConfig, patch=8, num_patches=64),
        text_config=text(
            hf.Lfm2Config,
            layer_types=["conv", "full_attention", "conv", "full_attention", "conv", "full_attention"],
            block_auto_adjust_ff_dim=False,
            tie_word_embeddings=False,  # tied, it would say its last word again and again
        ),
        image_token_id=IMAGE,
        projector_hidden_size=64,
        tie_word_embeddings=False,
    )
    pictures = image_processor(
        "lfm2_vl", "Lfm2VlImageProcessor", encoder_patch_size=8, tile_size=32, min_tiles=2, max_tiles=4,
        min_image_tokens=4, max_image_tokens=12, max_pixels_tolerance=1.0,
    )  # fmt: skip
    processor = hf.Lfm2VlProcessor(pictures, tokenizer(*MARKS, *MARKED_TILES))
    model = build(hf.Lfm2VlForConditionalGeneration, config, attention)
    return Specimen(model, processor, sizes=[(90, 60), (30, 60), (40, 130)])
