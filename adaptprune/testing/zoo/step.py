"""Step 3.7: local crops and a global view, sliding windows with more heads than the full layers have, experts."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from adaptprune.testing.specimen import Specimen, build, reserved, text, tokenizer, wake_routers
from adaptprune.testing.zoo.without_torchvision import image_processor

MARKS = ("<im_patch>", "<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")


def _waken(model: Any) -> Any:
    """Random values for what a new model sets to a constant, or starts so small that nothing is seen of it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lambda_" in name:
                parameter.uniform_(0.5, 1.5)
            elif "vision_model" in name and name.endswith("weight") and parameter.ndim > 1:
                parameter.normal_(std=0.2)
        model.model.multi_modal_projector.weight.normal_(std=0.003)  # the tower's outputs are large
    wake_routers(model)
    return model


def step3p7(attention: str) -> Specimen:
    config = hf.Step3p7Config(
        vision_config={
            "hidden_size": 32,
            "mlp_ratio": 2.0,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 84,
            "patch_size": 7,
        },
        text_config=text(
            hf.Step3p7TextConfig,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"] * 2,
            sliding_window=24,
            num_sliding_attention_heads=8,
            mlp_layer_types=["dense", "sparse"] * 3,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            share_expert_dim=32,
        ),
        image_token_id=reserved(0),
    )
    pictures = image_processor("step3p7", "Step3p7ImageProcessor", size={"height": 84, "width": 84}, patch_size=56)
    pictures.vision_patch_size = 7  # not among the settings: the tower of every checkpoint has 14
    processor = hf.Step3p7Processor(pictures, tokenizer(*MARKS))
    model = _waken(build(hf.Step3p7ForConditionalGeneration, config, attention))
    return Specimen(model, processor, "<im_patch>", sizes=[(112, 112), (60, 50), (80, 40)], image_token_id=reserved(0))
