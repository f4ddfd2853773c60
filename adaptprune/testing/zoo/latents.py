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


def idefics2(attention: str) -> Specimen:
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    vision = hf.Idefics2Config().vision_config.__class__
    config = hf.Idefics2Config(
        vision_config=clip(vision, size=56, initializer_range=0.2).to_dict(),
        perceiver_config={
            "hidden_size": 64,
            "resampler_n_latents": 16,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 16,
            "num_key_value_heads": 2,
            "initializer_range": 0.2,
        },
        text_config=text(hf.MistralConfig, sliding_window=24),
        image_token_id=IMAGE,
    )
    processor = hf.Idefics2Processor(
        Idefics2ImageProcessorPil(size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=False),
        tokenizer("<end_of_utterance>", image_boundary_token="<fake_token_around_image>"),
        image_seq_len=16,
    )
    return Specimen(build(hf.Idefics2ForConditionalGeneration, config, attention), processor)
