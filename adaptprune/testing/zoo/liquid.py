"""Liquid's models: short convolutions between the attention layers."""

from __future__ import annotations

import transformers as hf

from adaptprune.testing.specimen import IMAGE, VIDEO, VOCABULARY, Specimen, build, clip, no_video, text, tokenizer
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


def lfm3_vl(attention: str) -> Specimen:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    layers = ["conv", "sliding_attention", "full_attention", "sliding_attention", "conv", "full_attention"]
    config = hf.Lfm3VlConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "patch_size": 7,
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "full_attention"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.2,
        },
        text_config=text(hf.Lfm3Config, layer_types=layers, sliding_window=16, tie_word_embeddings=False),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VOCABULARY["<|vision_start|>"],
        vision_end_token_id=VOCABULARY["<|vision_end|>"],
        projector_hidden_size=64,
        tie_word_embeddings=False,  # tied, it would say its last word again and again
    )
    pictures = Qwen2VLImageProcessorPil(
        patch_size=7, merge_size=2, size={"shortest_edge": 14 * 14, "longest_edge": 14 * 14 * 30}
    )
    processor = hf.Lfm3VlProcessor(pictures, tokenizer(), no_video())
    model = build(hf.Lfm3VlForConditionalGeneration, config, attention)
    placeholder = "<|vision_start|> <image> <|vision_end|>"
    return Specimen(model, processor, placeholder, sizes=[(70, 42), (28, 84), (56, 56)])
