"""Models that read pictures as one grid and have windows: in their towers, in their decoders, or in both."""

from __future__ import annotations

from typing import Any

import transformers as hf

from adaptprune.testing.specimen import (
    IMAGE,
    VIDEO,
    VOCABULARY,
    Specimen,
    build,
    no_video,
    reserved,
    text,
    tokenizer,
)
from adaptprune.testing.zoo.grids import MROPE, PLACEHOLDER, SIZES, grid

#: A tower of Qwen 2.5-VL's kind: windows of 2 x 2 tokens in all blocks but the last.
WINDOWED = {
    "depth": 3,
    "num_heads": 4,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "intermediate_size": 64,
    "patch_size": 7,
    "window_size": 28,
    "fullatt_block_indexes": [2],
    "initializer_range": 0.1,
}
#: Both kinds of layer where one may prune; the window is shorter than a prompt.
SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = {"sliding_window": 12, "layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING]}


def _qwen_pictures() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(**grid())


def exaone4_5(attention: str) -> Specimen:
    config = hf.Exaone4_5_Config(
        text_config=text(hf.Exaone4Config, **MIXED),
        vision_config={**WINDOWED, "num_key_value_heads": 2},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    processor = hf.Exaone4_5_Processor(
        image_processor=_qwen_pictures(), tokenizer=tokenizer(), video_processor=no_video()
    )
    return Specimen(build(hf.Exaone4_5_ForConditionalGeneration, config, attention), processor, sizes=SIZES)


def hyperclovax_vision_v2(attention: str) -> Specimen:
    config = hf.HyperCLOVAXVisionV2Config(
        text_config=text(hf.HyperCLOVAXConfig, embedding_multiplier=2.0, residual_multiplier=0.7, logits_scaling=0.5),
        vision_config=hf.Qwen2_5_VLConfig(vision_config=WINDOWED).vision_config,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
    )
    processor = hf.HyperCLOVAXVisionV2Processor(
        image_processor=_qwen_pictures(), tokenizer=tokenizer(), video_processor=no_video()
    )
    return Specimen(build(hf.HyperCLOVAXVisionV2ForConditionalGeneration, config, attention), processor, sizes=SIZES)


def cohere_compass(attention: str) -> Specimen:
    from transformers.models.cohere_compass.image_processing_pil_cohere_compass import CohereCompassImageProcessorPil

    vision = {"depth": 4, "num_heads": 4, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64}
    config = hf.CohereCompassConfig(
        text_config=text(
            hf.CohereCompassTextConfig,
            rope_parameters={SLIDING: MROPE, FULL: None},  # layers of full attention know of no positions
            logit_scale=0.5,
            **MIXED,
        ).to_dict(),
        vision_config={
            **vision,
            "patch_size": 7,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
            "initializer_range": 0.1,
        },
        image_token_id=reserved(0),
        video_token_id=reserved(1),
        vision_start_token_id=reserved(2),
        vision_end_token_id=reserved(3),
    )
    # the processor has these names of tokens written in
    tokens = ("<|IMAGE_PAD|>", "<|VIDEO_PAD|>", "<|VISION_START|>", "<|VISION_END|>")
    names = dict(zip(("image_token", "video_token", "vision_start_token", "vision_end_token"), tokens, strict=True))
    processor = hf.CohereCompassProcessor(
        image_processor=CohereCompassImageProcessorPil(**grid()),
        tokenizer=tokenizer(*tokens, **names),
        video_processor=no_video(),
    )
    model = build(hf.CohereCompassForConditionalGeneration, config, attention)
    placeholder = f"{tokens[2]} {tokens[0]} {tokens[3]}"
    return Specimen(model, processor, placeholder, SIZES, image_token_id=reserved(0))


def qwen2_5_omni_thinker(attention: str) -> Specimen:
    config = hf.Qwen2_5OmniThinkerConfig(
        text_config=text(hf.Qwen2_5OmniTextConfig, rope_parameters=MROPE, tie_word_embeddings=False).to_dict(),
        vision_config=WINDOWED,
        audio_config={
            "num_mel_bins": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 16,
            "output_dim": 64,
        },
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=reserved(0),
        audio_start_token_id=reserved(1),
        audio_end_token_id=reserved(2),
        vision_start_token_id=VOCABULARY["<|vision_start|>"],
        vision_end_token_id=VOCABULARY["<|vision_end|>"],
        initializer_range=0.1,
    )
    sounds = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    names = dict(zip(("audio_token", "audio_bos_token", "audio_eos_token"), sounds, strict=True))
    marks = {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    processor = hf.Qwen2_5OmniProcessor(
        image_processor=_qwen_pictures(),
        video_processor=no_video(),
        feature_extractor=hf.WhisperFeatureExtractor(feature_size=16),
        tokenizer=tokenizer(*sounds, **names, **marks),
    )
    return Specimen(
        build(hf.Qwen2_5OmniThinkerForConditionalGeneration, config, attention), processor, PLACEHOLDER, SIZES
    )
