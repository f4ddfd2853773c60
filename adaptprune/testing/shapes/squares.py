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
    "deepseek_vl_hybrid": Row(_hybrid, {"high_res_vision_config": {**SAM, "scale": 0.5}}),
    "pp_chart2table": Row(squares(16, size=128), {"vision_config": SAM}),
}
