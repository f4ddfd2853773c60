"""Llama 4: chunked attention with rotary embeddings, full attention without any, experts."""

from __future__ import annotations

from typing import Any

import transformers as hf

from adaptprune.testing.specimen import Specimen, build, reserved, text, tokenizer
from adaptprune.testing.zoo.without_torchvision import image_processor

MARKS = ("<|image|>", "<|patch|>", "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>")


def _with_image_outputs(model: Any) -> Any:
    """`model`, whose decoder's output has the attribute that transformers 5.24.0 reads there in every forward.

    `Llama4ForConditionalGeneration.forward` ends with `image_outputs=outputs.image_outputs`, but `outputs` is what its
    `Llama4ForCausalLM` returns, a `MoeCausalLMOutputWithPast`, which has no such field: an AttributeError, with
    pictures or without. No setting of the config avoids it. The attribute is put on this one model's outputs, as None,
    which is all that is missing; where transformers has it, it is left alone.
    """

    def add(module: Any, args: Any, output: Any) -> None:
        if not hasattr(output, "image_outputs"):
            output.image_outputs = None

    model.language_model.register_forward_hook(add)
    return model


def llama4(attention: str) -> Specimen:
    config = hf.Llama4Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 128,  # what four patches make together
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 48,
            "patch_size": 8,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        text_config=text(
            hf.Llama4TextConfig,
            intermediate_size=64,
            intermediate_size_mlp=128,
            num_local_experts=4,
            moe_layers=[1, 3, 5],
            no_rope_layers=[1, 1, 0, 1, 1, 0],
            attention_chunk_size=24,
        ).to_dict(),
        image_token_index=reserved(1),
        boi_token_index=reserved(2),
        eoi_token_index=reserved(3),
    )
    size = {"height": 48, "width": 48}
    processor = hf.Llama4Processor(
        image_processor("llama4", "Llama4ImageProcessor", size=size, max_patches=4), tokenizer(*MARKS), patch_size=8
    )
    model = _with_image_outputs(build(hf.Llama4ForConditionalGeneration, config, attention))
    return Specimen(model, processor, "<|image|>", sizes=[(96, 45), (45, 45), (60, 90)], image_token_id=reserved(1))
