"""Models that also hear: only their pictures are tested."""

from __future__ import annotations

import transformers as hf

from adaptprune.testing.specimen import IMAGE, VIDEO, VOCABULARY, Specimen, build, no_video, reserved, text, tokenizer

AUDIO = {"audio_token": "<|audio|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
VISION = {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}


def qwen3_omni_moe_thinker(attention: str) -> Specimen:
    """The part of Qwen3-Omni that sees and writes; the talker speaks what it wrote."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
        Qwen3OmniMoeTextConfig,
        Qwen3OmniMoeThinkerConfig,
    )

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3OmniMoeThinkerConfig(
        text_config=text(
            Qwen3OmniMoeTextConfig, rope_parameters=rope, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
        ).to_dict(),
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 7,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
            "initializer_range": 0.2,
        },
        audio_config={
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 32,
            "num_mel_bins": 16,
            "output_dim": 64,
            "downsample_hidden_size": 8,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        initializer_range=0.2,
        audio_token_id=reserved(0),
        audio_start_token_id=reserved(1),
        # no field of this class, but its checkpoints have it, and the positions of pictures are counted with it
        vision_start_token_id=VOCABULARY["<|vision_start|>"],
    )
    processor = hf.Qwen3OmniMoeProcessor(
        Qwen2VLImageProcessorPil(
            patch_size=7, merge_size=2, size={"shortest_edge": 14 * 14, "longest_edge": 14 * 14 * 30}
        ),
        no_video(),
        hf.WhisperFeatureExtractor(feature_size=16),
        tokenizer(*AUDIO.values(), **AUDIO, **VISION),
    )
    model = build(hf.Qwen3OmniMoeThinkerForConditionalGeneration, config, attention)
    placeholder = "<|vision_start|> <image> <|vision_end|>"
    return Specimen(model, processor, placeholder, sizes=[(70, 42), (28, 84), (56, 56)])
