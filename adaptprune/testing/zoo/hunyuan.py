"""Tencent's models: rows that end in a newline among the placeholders, four axes of positions."""

from __future__ import annotations

import transformers as hf

from adaptprune.testing.specimen import IMAGE, VOCABULARY, Specimen, build, text, tokenizer


def hunyuan_vl(attention: str) -> Specimen:
    from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import HunYuanVLImageProcessorPil

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]}
    config = hf.HunYuanVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "patch_size": 7,
            "out_hidden_size": 64,
            "max_image_size": 112,
            "min_image_size": 14,
            "img_max_token_num": 64,
            "max_vit_seq_len": 256,
        },
        text_config=text(
            hf.HunYuanVLConfig().text_config.__class__, rope_parameters=rope, tie_word_embeddings=False
        ).to_dict(),
        image_token_id=IMAGE,
        im_start_id=VOCABULARY["<img>"],
        im_end_id=VOCABULARY["</img>"],
        im_newline_id=VOCABULARY["[IMG_BREAK]"],
        tie_word_embeddings=False,  # tied, it would say its last word again and again
    )
    pictures = HunYuanVLImageProcessorPil(
        patch_size=7, merge_size=2, size={"shortest_edge": 14 * 14, "longest_edge": 14 * 14 * 30}
    )
    processor = hf.HunYuanVLProcessor(pictures, tokenizer(image_start_token="<img>", image_end_token="</img>"))
    model = build(hf.HunYuanVLForConditionalGeneration, config, attention)
    return Specimen(model, processor, "<img><image></img>", sizes=[(70, 42), (28, 84), (56, 56)])
