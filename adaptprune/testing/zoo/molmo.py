"""Molmo 2: overlapping crops, features added to the embeddings, pictures that see each other in both directions."""

from __future__ import annotations

import torch
import transformers as hf

from adaptprune.testing.specimen import VOCABULARY, Specimen, build, no_video, reserved, text, tokenizer
from adaptprune.testing.zoo.without_torchvision import image_processor

MARKS = (
    "<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>", "<im_low>"
)  # fmt: skip


def molmo2(attention: str) -> Specimen:
    towers = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "initializer_range": 0.2}
    config = hf.Molmo2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "image_size": [48, 48],
            "patch_size": 8,
            **towers,
        },
        adapter_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "text_hidden_size": 64,
            "vision_feature_layer": [2, 1],
            **towers,
        },
        text_config=text(hf.Molmo2TextConfig, vocab_size=len(VOCABULARY) - 8, additional_vocab_size=8).to_dict(),
        image_patch_id=reserved(0),
        image_start_token_id=reserved(2),
        low_res_image_start_token_id=reserved(3),
        frame_start_token_id=reserved(4),
        image_end_token_id=reserved(5),
        frame_end_token_id=reserved(6),
        initializer_range=0.2,
    )
    pictures = image_processor(
        "molmo2", "Molmo2ImageProcessor", size={"height": 48, "width": 48}, patch_size=8, overlap_margins=[1, 1],
        max_crops=3,
    )  # fmt: skip
    processor = hf.Molmo2Processor(pictures, no_video(), tokenizer(*MARKS))
    model = build(hf.Molmo2ForConditionalGeneration, config, attention)
    with torch.no_grad():  # or a picture would drown what the layers add to it
        model.model.multi_modal_projector.image_projector.down_proj.weight /= 20
    return Specimen(model, processor, sizes=[(90, 40), (40, 40), (40, 90)], image_token_id=reserved(0))
