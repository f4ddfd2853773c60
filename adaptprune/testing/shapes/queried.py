"""Types whose pictures become tokens by learned queries, by tiles, or by two views."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adaptprune.testing.shapes.row import Pictures, Row, noise, squares, words
from adaptprune.testing.shapes.squares import SAM
from adaptprune.testing.specimen import IMAGE, finish

QUERIES = 32

_QFORMER: dict[str, Any] = {
    "vision_config": {"initializer_range": 0.2},
    "qformer_config": {"encoder_hidden_size": 32},
    "num_query_tokens": QUERIES,
    "initializer_range": 0.2,
}


def _instructed(frames: int | None = None) -> Any:
    """One picture, or one video of some frames, and a prompt of its own for the Q-Former."""

    def made(config: Any) -> Pictures:
        shape = (1, 3, 28, 28) if frames is None else (1, frames, 3, 28, 28)
        ids = torch.tensor([words(5, seed=3)])
        tensors = {
            "pixel_values": noise(*shape),
            "qformer_input_ids": ids,
            "qformer_attention_mask": torch.ones_like(ids),
        }
        return Pictures([QUERIES * (frames or 1)], tensors)

    return made


def _views(config: Any) -> Pictures:
    """A whole picture of 4 x 4 each, the first with two details of as much before it; a separator behind."""
    tensors = {
        "pixel_values": noise(2, 3, 128, 128),
        "pixel_values_local": noise(2, 3, 128, 128, seed=1),
        "num_local_patches": torch.tensor([2, 0]),
    }
    return Pictures([2 * 16 + 16 + 1, 16 + 1], tensors)


def _fewer_queries(model: Any) -> None:
    """As many queries as patches, as it is for both sizes of pictures that the model is made for."""
    tower = model.model.vision_tower
    tower.query_768_resolution = nn.Embedding(16, tower.query_768_resolution.embedding_dim)


def _finish_inner(model: Any) -> None:
    """`generate` is that of the inner model."""
    finish(model.language_model)


_DEEPSEEK_MOE = {"mlp_layer_types": ["dense", "sparse", "sparse"] * 2}

ROWS = {
    "deepseek_ocr2": Row(
        _views,
        {
            "text_config": {**_DEEPSEEK_MOE, "num_experts_per_tok": 2},
            "vision_config": {
                "sam_config": {**SAM, "downsample_channels": [32, 32]},
                "encoder_config": {"num_key_value_heads": 4, "layer_types": ["full_attention"] * 3},
            },
        },
        after=_fewer_queries,
        note="16 queries a view in place of 144 or 256",
    ),
    "unlimited_ocr": Row(
        squares(21, size=128),
        {
            "text_config": {
                **_DEEPSEEK_MOE,
                "sliding_window": 3,  # of what is generated: the prompt is never left
                "num_key_value_heads": 4,  # its eager attention knows no grouped heads
            },
            "vision_config": {
                "sam_config": {**SAM, "downsample_channels": [32, 32]},
                "encoder_config": {"image_size": 28, "patch_size": 7},
            },
        },
        note="no local views, whose numbers come as lists; a window of three tokens",
    ),
    "blip-2": Row(squares(QUERIES, pictures=1), {**_QFORMER, "image_token_index": IMAGE}, after=_finish_inner),
    "instructblip": Row(_instructed(), {**_QFORMER, "image_token_index": IMAGE}, after=_finish_inner),
    "instructblipvideo": Row(_instructed(2), {**_QFORMER, "video_token_index": IMAGE}, after=_finish_inner),
}
