"""Models that read pictures of any shape as one grid of patches, merged two by two: all but Qwen's and GLM's."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from adaptprune.testing.specimen import IMAGE, VIDEO, VOCABULARY, Specimen, build, no_video, reserved, text, tokenizer

MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
PLACEHOLDER = "<|vision_start|> <image> <|vision_end|>"
SIZES = [(70, 42), (28, 84), (56, 56)]
MARKS = {
    "vision_start_token_id": VOCABULARY["<|vision_start|>"],
    "vision_end_token_id": VOCABULARY["<|vision_end|>"],
}


def grid(**options: Any) -> dict[str, Any]:
    """Settings of an image processor: patches of 7, merged 2 x 2, at most 30 tokens a picture."""
    side = 14 * 14
    return {"patch_size": 7, "merge_size": 2, "size": {"shortest_edge": side, "longest_edge": side * 30}, **options}


def paddleocr_vl(attention: str) -> Specimen:
    from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = hf.PaddleOCRVLConfig(
        text_config=text(
            hf.PaddleOCRVLConfig().text_config.__class__, rope_parameters=MROPE, tie_word_embeddings=False
        ).to_dict(),
        vision_config={**vision, "image_size": 56, "patch_size": 7, "initializer_range": 0.1},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
        **MARKS,
    )
    processor = hf.PaddleOCRVLProcessor(PaddleOCRVLImageProcessorPil(**grid()), tokenizer())
    return Specimen(build(hf.PaddleOCRVLForConditionalGeneration, config, attention), processor, PLACEHOLDER, SIZES)


def video_llama_3(attention: str) -> Specimen:
    from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import VideoLlama3ImageProcessorPil

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = hf.VideoLlama3Config(
        text_config=text(hf.Qwen2Config),
        vision_config={**vision, "patch_size": 7, "initializer_range": 0.1},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    processor = hf.VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessorPil(**grid()), tokenizer=tokenizer(), video_processor=no_video()
    )
    return Specimen(build(hf.VideoLlama3ForConditionalGeneration, config, attention), processor, sizes=SIZES)


def cosmos3_edge(attention: str) -> Specimen:
    from transformers.models.cosmos3_edge.image_processing_pil_cosmos3_edge import Cosmos3EdgeImageProcessorPil

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = hf.Cosmos3EdgeConfig(
        text_config=text(hf.Cosmos3EdgeTextConfig, rope_parameters=MROPE).to_dict(),
        vision_config={**vision, "patch_size": 7, "num_patches": 64, "initializer_range": 0.1},
        projector_hidden_size=64,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        **MARKS,
    )
    processor = hf.Cosmos3EdgeProcessor(
        image_processor=Cosmos3EdgeImageProcessorPil(**grid()), tokenizer=tokenizer(), video_processor=no_video()
    )
    # positions cannot be made without them; its class, unlike Qwen's and GLM's, leaves them out unless asked
    processor.return_mm_token_type_ids = True
    return Specimen(build(hf.Cosmos3EdgeForConditionalGeneration, config, attention), processor, PLACEHOLDER, SIZES)


def ernie4_5_vl_moe(attention: str) -> Specimen:
    from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
        Ernie4_5_VLMoeImageProcessorPil,
    )

    vision = {"hidden_size": 32, "intermediate_size": 64, "depth": 3, "num_heads": 4, "patch_size": 7}
    config = hf.Ernie4_5_VLMoeConfig(
        text_config=text(
            hf.Ernie4_5_VLMoeTextConfig,
            rope_parameters={**MROPE, "mrope_section": [3, 3, 2]},  # height, width, time
            mlp_layer_types=["dense", *["sparse"] * 5],
            moe_intermediate_size=[32, 16],  # of the experts of text and of those of pictures
            moe_num_experts=4,
            moe_k=2,
            moe_num_shared_experts=1,
            tie_word_embeddings=False,
        ).to_dict(),
        vision_config={**vision, "initializer_range": 0.1},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=VOCABULARY["<|vision_start|>"],
        image_end_token_id=VOCABULARY["<|vision_end|>"],
        video_start_token_id=reserved(0),
        video_end_token_id=reserved(1),
        tie_word_embeddings=False,
    )
    marks = {"image_start_token": "<|vision_start|>", "image_end_token": "<|vision_end|>"}
    videos = ("<|video_start|>", "<|video_end|>")
    processor = hf.Ernie4_5_VLMoeProcessor(
        image_processor=Ernie4_5_VLMoeImageProcessorPil(**grid()),
        tokenizer=tokenizer(*videos, **marks, video_start_token=videos[0], video_end_token=videos[1]),
        video_processor=no_video(font=""),
    )
    model = build(hf.Ernie4_5_VLMoeForConditionalGeneration, config, attention)
    unbalance(model)
    return Specimen(model, processor, PLACEHOLDER, SIZES)


def unbalance(model: Any) -> None:
    """Give routers' corrections of the experts' scores some values: new, they are zero."""
    torch.manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            tensor.data.normal_(std=0.1)


def kimi_k25(attention: str) -> Specimen:
    """Kimi's pictures are read by PaddleOCR-VL's processor, as its own needs torchvision.

    Both make the same patches in the same order; Kimi's pads a picture where PaddleOCR-VL's stretches it.
    """
    from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = hf.Kimi_K25Config(
        text_config=text(
            hf.DeepseekV3Config,
            head_dim=8,  # of what is turned by positions
            num_key_value_heads=4,
            kv_lora_rank=16,
            q_lora_rank=24,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
            moe_intermediate_size=32,
            num_mtp_layers=0,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
        vision_config={**vision, "patch_size": 7, "pos_emb_height": 8, "pos_emb_width": 8, "initializer_range": 0.1},
        projection_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
        **MARKS,
    )
    processor = hf.Kimi_K25Processor(
        image_processor=PaddleOCRVLImageProcessorPil(**grid()), tokenizer=tokenizer(), video_processor=no_video()
    )
    model = build(hf.Kimi_K25ForConditionalGeneration, config, attention)
    unbalance(model)
    return Specimen(model, processor, PLACEHOLDER, SIZES)
