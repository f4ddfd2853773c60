"""Google's models."""

from __future__ import annotations

import torch
import transformers as hf

from adaptprune.testing.specimen import IMAGE, VOCABULARY, Specimen, build, clip, text, tokenizer


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
