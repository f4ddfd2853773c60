"""Google's models."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from adaptprune.testing.specimen import (
    IMAGE,
    VOCABULARY,
    Specimen,
    build,
    clip,
    no_video,
    reserved,
    text,
    tokenizer,
)
from adaptprune.testing.towers import stand_in


def gemma3(attention: str) -> Specimen:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    config = hf.Gemma3Config(
        vision_config=clip(hf.SiglipVisionConfig, size=56),
        text_config=text(
            hf.Gemma3TextConfig,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"] * 2,
            query_pre_attn_scalar=16,
            tie_word_embeddings=False,  # tied, it would say its last word again and again
        ),
        mm_tokens_per_image=16,
        tie_word_embeddings=False,
        image_token_index=IMAGE,
        boi_token_index=VOCABULARY["<boi>"],
        eoi_token_index=VOCABULARY["<eoi>"],
    )
    processor = hf.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 56, "width": 56}), tokenizer(), image_seq_length=16
    )
    model = build(hf.Gemma3ForConditionalGeneration, config, attention)
    with torch.no_grad():  # new, it is zero, and so would be every feature
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.2)
    return Specimen(model, processor, "<boi>")


def paligemma(attention: str) -> Specimen:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    # PaliGemma 1 has Gemma, which has SDPA; PaliGemma 2 has Gemma 2, which is eager: soft caps, sliding windows
    gemma2 = text(hf.Gemma2Config, sliding_window=24, query_pre_attn_scalar=16)
    config = hf.PaliGemmaConfig(
        vision_config=clip(hf.SiglipVisionConfig).to_dict(),
        text_config=text(hf.GemmaConfig).to_dict() if attention != "eager" else gemma2.to_dict(),
        image_token_index=IMAGE,
        projection_dim=64,
    )
    pictures = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pictures.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(pictures, tokenizer())
    return Specimen(build(hf.PaliGemmaForConditionalGeneration, config, attention), processor)


#: The last two layers read the keys of the two before them: pruning is possible up to layer 2.
SHARING = {
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": 24,
    "hidden_size_per_layer_input": 8,
    "tie_word_embeddings": False,
}


#: Tokens that processors of Gemma 4 want, those of sound even where there is none.
SOUND = {"audio_token": "<audio>", "boa_token": "<boa>", "eoa_token": "<eoa>"}
GEMMA4_IDS = {
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "image_token_id": IMAGE,
    "boi_token_id": VOCABULARY["<boi>"],
    "eoi_token_id": VOCABULARY["<eoi>"],
    "video_token_id": reserved(0),
    "audio_token_id": reserved(1),
    "boa_token_id": reserved(2),
    "eoa_token_index": reserved(3),
}


def _gemma4(model: Any, kind: Any, sound: Any, **pictures: int) -> Specimen:
    """Pictures of at most 70 tokens, the fewest there are."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    with torch.no_grad():
        for number, layer in enumerate(model.model.language_model.layers):
            layer.layer_scalar.fill_(0.6 + 0.1 * number)  # new, it is 1
            layer.self_attn.q_norm.weight.fill_(0.3)  # new, it is 1, and a token would see hardly more than one other
    processor = kind(
        feature_extractor=sound,
        image_processor=Gemma4ImageProcessorPil(**pictures, max_soft_tokens=70),
        tokenizer=tokenizer("<|video|>", *SOUND.values(), **SOUND),
        video_processor=no_video(),
    )
    return Specimen(model, processor, sizes=[(60, 40), (30, 90), (50, 50)])


def gemma4(attention: str) -> Specimen:
    """As the small ones (E2B): shared keys, per-layer inputs."""
    from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor

    config = hf.Gemma4Config(
        vision_config=hf.Gemma4VisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            head_dim=8, patch_size=4, pooling_kernel_size=2, position_embedding_size=256, initializer_range=0.2,
        ),
        text_config=text(
            hf.Gemma4TextConfig, **SHARING, vocab_size_per_layer_input=len(VOCABULARY), global_head_dim=32,
            use_double_wide_mlp=True,
        ),
        audio_config=None,
        **GEMMA4_IDS,
    )  # fmt: skip
    model = build(hf.Gemma4ForConditionalGeneration, config, attention)
    with torch.no_grad():
        model.model.vision_tower.patch_embedder.position_embedding_table.normal_(std=0.2)  # new, all places are one
    return _gemma4(model, hf.Gemma4Processor, Gemma4AudioFeatureExtractor(), patch_size=4, pooling_kernel_size=2)


def gemma4_unified(attention: str) -> Specimen:
    """As the large ones of Gemma 4: pictures see themselves in both directions, where layers have a window.

    Its image processor, which needs torchvision, merges patches. That of Gemma 4 makes the same if its patches are as
    large as merged ones, and not pooled.
    """
    from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import Gemma4UnifiedAudioFeatureExtractor

    config = hf.Gemma4UnifiedConfig(
        vision_config=hf.Gemma4UnifiedVisionConfig(
            patch_size=4, pooling_kernel_size=2, mm_embed_dim=32, mm_posemb_size=128, output_proj_dims=32,
            initializer_range=0.2,
        ),
        text_config=text(
            hf.Gemma4UnifiedTextConfig, sliding_window=24, layer_types=["sliding_attention", "full_attention"] * 3,
            global_head_dim=32, num_global_key_value_heads=1, attention_k_eq_v=True,
            use_bidirectional_attention="vision", tie_word_embeddings=False,
        ),
        audio_config=None,
        **GEMMA4_IDS,
    )  # fmt: skip
    model = build(hf.Gemma4UnifiedForConditionalGeneration, config, attention)
    sound = Gemma4UnifiedAudioFeatureExtractor()
    return _gemma4(model, hf.Gemma4UnifiedProcessor, sound, patch_size=8, pooling_kernel_size=1)


def gemma3n(attention: str) -> Specimen:
    """Behind a stand-in for its MobileNet, which needs timm: any picture is a square of tokens, as from that."""
    from transformers.models.gemma3n.feature_extraction_gemma3n import Gemma3nAudioFeatureExtractor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    # as published: the ends of pictures and the placeholders have embeddings of their own, behind those of words
    names = {"eoi_token": "<end>", "image_token": "<soft>", "eoa_token": "<eoa>", "audio_token": "<audio>"}
    words = tokenizer(*names.values(), "<boa>", **names, boa_token="<boa>")
    config = hf.Gemma3nConfig(
        vision_config=stand_in(
            hf.Gemma3nVisionConfig, "image", patch=14, hidden_size=32, vocab_size=2, vocab_offset=reserved(0)
        ),
        audio_config=hf.Gemma3nAudioConfig(
            vocab_size=len(VOCABULARY) - reserved(2), vocab_offset=reserved(2), input_feat_size=16, hidden_size=32,
            conf_num_attention_heads=2, conf_num_hidden_layers=1, sscp_conv_channel_size=(8, 4),
        ),
        text_config=text(
            hf.Gemma3nTextConfig, **SHARING, vocab_size_per_layer_input=reserved(0), laurel_rank=8,
            activation_sparsity_pattern=[0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
        ),
        tie_word_embeddings=False,
        initializer_range=0.2,
        vision_soft_tokens_per_image=16,
        boi_token_id=VOCABULARY["<boi>"],
        eoi_token_id=reserved(0),
        image_token_id=reserved(1),
        eoa_token_id=reserved(2),
        audio_token_id=reserved(3),
        boa_token_id=reserved(4),
    )  # fmt: skip
    processor = hf.Gemma3nProcessor(
        feature_extractor=Gemma3nAudioFeatureExtractor(),
        image_processor=SiglipImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer=words,
        image_seq_length=16,
    )
    model = build(hf.Gemma3nForConditionalGeneration, config, attention)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.altup.correct_output_scale.normal_(std=1.0)  # new, it is zero, and per-layer inputs would not matter
            layer.self_attn.q_norm.weight.fill_(0.3)  # as in gemma4
    return Specimen(model, processor, "<soft>", image_token_id=reserved(1))
