"""Types whose pictures come as rows of patches with a grid of (time, height, width) each."""

from __future__ import annotations

from typing import Any

from adaptprune.testing.shapes.row import Row, thw
from adaptprune.testing.shapes.shrink import DROP, START

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
    "cohere_compass": Row(
        thw(),
        _rope(
            {"full_attention": None, "sliding_attention": MROPE},
            layer_types=["sliding_attention", "full_attention"] * 3,
        ),
        types=MM,
    ),
    "cosmos3_edge": Row(thw(time=1), _rope(MROPE), types=MM),
    "cosmos3_omni": Row(thw(), _rope({**MROPE, "mrope_interleaved": True}), types=MM),
    "exaone4_5": Row(thw()),
    "glm4v": Row(thw(), _rope(MROPE), types=MM),
    "glmga": Row(thw(), _rope(MROPE), types=MM),
    "glm_ocr": Row(thw(), _rope(MROPE), types=MM),
    # four axes: text, width, height, picture
    "hunyuan_vl": Row(
        thw(time=1, newlines=True, ends=2),
        {**_rope({**THETA, "mrope_section": [2, 2, 2, 2]}, head_dim=16), "vision_config": {"max_image_size": 56}},
        types=MM,
    ),
    "hyperclovax_vision_v2": Row(thw()),
    "lfm3_vl": Row(thw()),
    "qwen2_5_omni_thinker": Row(
        thw(),
        {
            **_rope(MROPE),
            "vision_start_token_id": START,  # the default config lacks it, and positions are made with it
            "audio_config": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64},
        },
    ),
    "muse_glimmer": Row(thw(), _MUSE),
    "muse_spark": Row(
        thw(),
        {
            **_MUSE,
            "audio_config": {"num_hidden_layers": DROP, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
        },
    ),
}
