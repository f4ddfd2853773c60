"""Types whose pictures come as rows of patches with a grid of (time, height, width) each."""

from __future__ import annotations

from typing import Any

from adaptprune.testing.shapes.row import Row, thw
from adaptprune.testing.shapes.shrink import DROP

THETA = {"rope_type": "default", "rope_theta": 1e4}
#: Half a head of 16.
MROPE = {**THETA, "mrope_section": [4, 2, 2]}
MM = "mm_token_type_ids"


def _rope(parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"text_config": {"rope_parameters": parameters, **more}}


_MUSE = {
    "text_config": {"layer_types": DROP},  # those of the type go with its NoPE layers
    "vision_config": {"pos_emb_height": 8, "pos_emb_width": 8, "layer_types": DROP},
    "out_hidden_size": 128,  # of four patches
}

ROWS = {
    # rotary positions in sliding layers only, as published
    "cosmos3_edge": Row(thw(time=1), _rope(MROPE), types=MM),
    "cosmos3_omni": Row(thw(), _rope({**MROPE, "mrope_interleaved": True}), types=MM),
    "glmga": Row(thw(), _rope(MROPE), types=MM),
    # four axes: text, width, height, picture
    "muse_glimmer": Row(thw(), _MUSE),
    "muse_spark": Row(
        thw(),
        {
            **_MUSE,
            "audio_config": {"num_hidden_layers": DROP, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
        },
    ),
}
