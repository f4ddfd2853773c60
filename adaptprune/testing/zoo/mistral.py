"""Mistral's models."""

from __future__ import annotations

import transformers as hf

from adaptprune.testing.specimen import IMAGE, PixtralPrompts, Specimen, build, clip, text, tokenizer


def mistral3(attention: str) -> Specimen:
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    config = hf.Mistral3Config(
        vision_config=clip(hf.PixtralVisionConfig, size=112, head_dim=8),
        text_config=text(hf.MistralConfig, sliding_window=None),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    processor = PixtralPrompts(PixtralImageProcessorPil(patch_size=14, size={"longest_edge": 70}), tokenizer())
    return Specimen(build(hf.Mistral3ForConditionalGeneration, config, attention), processor)
