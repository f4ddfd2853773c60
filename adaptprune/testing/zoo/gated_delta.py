"""Models with Qwen 3.5's decoder: layers of linear attention (gated delta rule), with full attention here and there."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from adaptprune.testing.specimen import IMAGE, VIDEO, VOCABULARY, Specimen, build, no_video, reserved, text, tokenizer

LINEAR, FULL = "linear_attention", "full_attention"
#: Both kinds stand before and behind every place where tests prune; the last layer is of the kind without keys.
KINDS = [LINEAR, FULL, LINEAR, LINEAR, FULL, LINEAR]


def _decoder(kind: Any, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    made: dict[str, Any] = text(
        kind,
        layer_types=KINDS,
        rope_parameters={**rope, "partial_rotary_factor": 0.5},
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        **more,
    ).to_dict()
    return made


def remember(model: Any) -> Any:
    """Make linear layers remember: new, half their heads keep less than a thousandth of a token to the next one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("A_log"):
                weight.uniform_(0.01, 0.2).log_()
            elif name.endswith("dt_bias"):
                weight.normal_(std=0.5)
            elif "language_model" in name and name.endswith("norm.weight"):
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def _qwen3_5(stem: str, attention: str, **moe: Any) -> Specimen:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = {"depth": 3, "num_heads": 4, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64}
    config = getattr(hf, f"{stem}Config")(
        text_config=_decoder(getattr(hf, f"{stem}TextConfig"), **moe),
        vision_config={**vision, "patch_size": 7, "num_position_embeddings": 64, "initializer_range": 0.1},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VOCABULARY["<|vision_start|>"],
        vision_end_token_id=VOCABULARY["<|vision_end|>"],
    )
    processor = hf.Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=7, merge_size=2, size={"shortest_edge": 14 * 14, "longest_edge": 14 * 14 * 30}
        ),
        tokenizer=tokenizer(),
        video_processor=no_video(),
    )
    model = remember(build(getattr(hf, f"{stem}ForConditionalGeneration"), config, attention))
    placeholder = "<|vision_start|> <image> <|vision_end|>"
    return Specimen(model, processor, placeholder, sizes=[(70, 42), (28, 84), (56, 56)])


def qwen3_5(attention: str) -> Specimen:
    return _qwen3_5("Qwen3_5", attention)


def qwen3_5_moe(attention: str) -> Specimen:
    sizes = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    return _qwen3_5("Qwen3_5Moe", attention, num_experts=4, num_experts_per_tok=2, **sizes)


#: Marks of a picture's parts in MiniCPM's prompts, by the attributes that its processor reads.
MARKS = {
    "image_start_token": "<img>",
    "image_end_token": "</img>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
#: Those that are not in the tokenizer anyway; a new row of slices is a token as well.
OWN = ("<slice>", "</slice>", "<image_id>", "</image_id>", "\n")


def _minicpm(stem: str, attention: str, **marks: int) -> Specimen:
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    vision = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    config = getattr(hf, f"{stem}Config")(
        text_config=_decoder(hf.Qwen3_5TextConfig),
        vision_config={**vision, "image_size": 56, "patch_size": 7},
        insert_layer_id=1,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        **marks,
    )
    processor = getattr(hf, f"{stem}Processor")(
        image_processor=MiniCPMV4_6ImageProcessorPil(patch_size=7, scale_resolution=84, max_slice_nums=4),
        tokenizer=tokenizer(*OWN, **MARKS),
        video_processor=no_video(slice_mode=False, downsample_mode="16x"),
    )
    model = remember(build(getattr(hf, f"{stem}ForConditionalGeneration"), config, attention))
    return Specimen(model, processor, sizes=[(70, 42), (120, 150), (28, 84)])


def minicpmv4_6(attention: str) -> Specimen:
    return _minicpm("MiniCPMV4_6", attention)


def minicpmv4_7(attention: str) -> Specimen:
    return _minicpm(
        "MiniCPMV4_7",
        attention,
        image_start_id=VOCABULARY["<img>"],
        image_end_id=VOCABULARY["</img>"],
        slice_start_id=reserved(0),
        slice_end_id=reserved(1),
        newline_id=reserved(4),
    )
