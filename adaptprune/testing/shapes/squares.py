"""Types whose pictures, or tiles of pictures, are squares of a fixed size."""

from __future__ import annotations

from typing import Any

from adaptprune.testing.shapes.row import Pictures, Row, noise, squares

#: A SAM tower with windows of its own: 16 x 16 patches.
SAM: dict[str, Any] = {
    "image_size": 128,
    "patch_size": 8,
    "output_channels": 32,
    "window_size": 5,
    "global_attn_indexes": [2],
    "mlp_dim": 64,
}


def _hybrid(config: Any) -> Pictures:
    """The same pictures in two sizes."""
    tensors = {"pixel_values": noise(2, 3, 28, 28), "high_res_pixel_values": noise(2, 3, 128, 128, seed=1)}
    return Pictures([16, 16], tensors)


ROWS = {
    "deepseek_vl": Row(squares(16)),
    "deepseek_vl_hybrid": Row(_hybrid, {"high_res_vision_config": {**SAM, "scale": 0.5}}),
    "janus": Row(
        squares(16),
        {
            "vision_config": {"projection_dim": 64, "num_image_tokens": 16, "hidden_dropout_rate": 0.0},
            "vq_config": {
                "num_embeddings": 32,
                "base_channels": 32,
                "channel_multiplier": [1],
                "latent_channels": 8,
                "embed_dim": 8,
                "num_patches": 4,
                "projection_dim": 64,
                "image_token_embed_dim": 64,
                "num_res_blocks": 1,
            },
        },
    ),
    "pp_chart2table": Row(squares(16, size=128), {"vision_config": SAM}),
    "qianfan_ocr": Row(
        squares(16, size=56), {"vision_config": {"image_size": [56, 56], "patch_size": [7, 7], "drop_path_rate": 0.0}}
    ),
    "shieldgemma2": Row(
        squares(16, size=56),
        {
            "text_config": {"query_pre_attn_scalar": 16},
            "vision_config": {"image_size": 56},
            "mm_tokens_per_image": 16,
        },
        types="token_type_ids",
    ),
}
