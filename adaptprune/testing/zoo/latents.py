"""Models whose pictures become a fixed number of latents, which have no places in them."""

from __future__ import annotations

from typing import Any, ClassVar

import transformers as hf

from adaptprune.testing.specimen import IMAGE, Specimen, build, clip, text, tokenizer


def aria(attention: str) -> Specimen:
    """Its image processor knows squares of 490 and of 980 pixels only: large patches make few of them."""
    from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil

    class Small(hf.AriaProcessor):
        images_kwargs: ClassVar[dict[str, Any]] = {"max_image_size": 490, "split_image": False}

    tower = type(hf.AriaConfig().vision_config)
    config = hf.AriaConfig(
        vision_config=clip(tower, size=490, patch=70, initializer_range=0.2),
        text_config=text(hf.AriaTextConfig, intermediate_size=32, moe_num_experts=4, moe_num_shared_experts=1),
        image_token_index=IMAGE, projector_patch_to_query_dict={49: 16}, initializer_range=0.2,
    )  # fmt: skip
    pictures = AriaImageProcessorPil(max_image_size=490, min_image_size=140)
    processor = Small(pictures, tokenizer(), size_conversion={490: 16})
    return Specimen(build(hf.AriaForConditionalGeneration, config, attention), processor)
