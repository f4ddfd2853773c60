"""Models that read a picture through a fixed number of latents, which stand for no place in it."""

from __future__ import annotations

import transformers as hf

from adaptprune.testing.specimen import IMAGE, Specimen, build, clip, text, tokenizer


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
