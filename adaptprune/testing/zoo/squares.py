"""Models for which every picture is one square."""

from __future__ import annotations

import transformers as hf

from adaptprune.testing.specimen import IMAGE, Specimen, build, clip, resize, text, tokenizer
from adaptprune.testing.towers import stand_in


def vipllava(attention: str) -> Specimen:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = hf.VipLlavaConfig(
        vision_config=clip(), text_config=text(hf.LlamaConfig), image_token_index=IMAGE,
        vision_feature_layer=[-2, -3, 1], image_seq_length=16, initializer_range=0.2,
    )  # fmt: skip
    processor = hf.LlavaProcessor(
        CLIPImageProcessorPil(**resize(28)), tokenizer(), patch_size=7, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return Specimen(build(hf.VipLlavaForConditionalGeneration, config, attention), processor)


def fast_vlm(attention: str) -> Specimen:
    """Behind a stand-in for its FastViT, which needs timm: features come as a picture, as from the real one."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = hf.FastVlmConfig(
        vision_config=stand_in(hf.TimmWrapperConfig, "image", patch=7, hidden_size=32),
        text_config=text(hf.Qwen2Config), image_token_index=IMAGE, image_seq_length=16, initializer_range=0.2,
    )  # fmt: skip
    processor = hf.LlavaProcessor(
        CLIPImageProcessorPil(**resize(28)), tokenizer(), patch_size=7, vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
    )  # fmt: skip
    return Specimen(build(hf.FastVlmForConditionalGeneration, config, attention), processor)
