"""Nemotron: layers that are a state space, attention, experts or an MLP."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from adaptprune.testing.specimen import IMAGE, VIDEO, Specimen, build, no_video, reserved, text, tokenizer, wake_routers
from adaptprune.testing.zoo.without_torchvision import image_processor

LAYERS = ["linear_attention", "full_attention", "moe", "mlp", "full_attention", "linear_attention"]


def _waken(model: Any) -> Any:
    """Random values for what a new model sets to a constant, or starts so small that nothing is seen of it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("dt_bias"):
                parameter.uniform_(-1.0, 1.0)  # steps of 0.3 to 1.3 instead of 0.001 to 0.1
            elif name.endswith((".D", ".A_log")):
                parameter.uniform_(-1.0, 0.5)
            elif name.endswith("mixer.out_proj.weight"):
                parameter.normal_(std=0.2)
        model.multi_modal_projector.linear_2.weight /= 10  # or a picture would drown what the layers add to it
    wake_routers(model)
    return model


def nemotron_h_omni(attention: str) -> Specimen:
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "mlp_ratio": 2.0,
            "patch_size": 8,
            "image_size": 64,
            "max_img_size": 128,
            "video_temporal_patch_size": 2,
            "initializer_range": 0.2,
        },
        text_config=text(
            hf.NemotronHConfig,
            num_hidden_layers=None,
            layers_block_type=LAYERS,
            ssm_state_size=8,
            mamba_num_heads=4,
            mamba_head_dim=32,
            n_groups=2,
            chunk_size=16,
            n_routed_experts=4,
            moe_intermediate_size=32,
            moe_shared_expert_intermediate_size=32,
        ).to_dict(),
        vision_hidden_size=32,
        projector_hidden_size=64,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=reserved(0),
    )
    pictures = image_processor(
        "nemotron_h_omni", "NemotronH_Omni_Reasoning_V3ImageProcessor", patch_size=8, min_num_patches=16,
        max_num_patches=48, max_model_len=64,
    )  # fmt: skip
    processor = hf.NemotronH_Omni_Reasoning_V3Processor(
        pictures, no_video(), tokenizer("<so_embedding>", "<so_start>", "<so_end>"), hf.ParakeetFeatureExtractor()
    )
    model = _waken(build(hf.NemotronH_Omni_Reasoning_V3, config, attention))
    return Specimen(model, processor, sizes=[(60, 40), (30, 70), (20, 20)])
