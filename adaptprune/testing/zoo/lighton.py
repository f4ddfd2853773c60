"""More models whose pictures keep their shape."""

from __future__ import annotations

import transformers as hf

from adaptprune.testing.specimen import IMAGE, Specimen, build, clip, text, tokenizer


def lighton_ocr(attention: str) -> Specimen:
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    config = hf.LightOnOcrConfig(
        vision_config=clip(hf.PixtralVisionConfig, size=140, patch=14, head_dim=8), text_config=text(hf.Qwen3Config),
        image_token_id=IMAGE, spatial_merge_size=2, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    words = tokenizer(image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    # of odd numbers of patches the last one is left over, by the model as by the processor
    pictures = PixtralImageProcessorPil(patch_size=14, size={"longest_edge": 140})
    processor = hf.LightOnOcrProcessor(pictures, words, patch_size=14, spatial_merge_size=2)
    model = build(hf.LightOnOcrForConditionalGeneration, config, attention)
    return Specimen(model, processor, sizes=[(140, 84), (60, 120), (90, 90)])
