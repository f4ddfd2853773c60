"""Types whose layers choose the keys they attend to (indexers), and others that carry state from layer to layer."""

from __future__ import annotations

from typing import Any

import torch

from adaptprune.testing.shapes.row import Pictures, Row, noise, thw
from adaptprune.testing.shapes.shrink import START, WINDOW, merged
from adaptprune.testing.shapes.sized import padded
from adaptprune.testing.specimen import VOCABULARY

MM = "mm_token_type_ids"
#: Fewer than the keys of a prompt; so many that they are never too few.
FEW, ALL = 16, 512
#: Heights and widths in placeholders.
CELLS = ((4, 5), (2, 7))

_INKLING: dict[str, Any] = {
    "text_config": {
        "unpadded_vocab_size": len(VOCABULARY),
        "rel_extent": WINDOW,
        "log_scaling_n_floor": 8,  # within the prompt
        "n_layers_per_attn_res_block": 2,
    },
    "vision_config": {"patch_size": 7, "posemb_grid_size": 8, "projection_hidden_dim": 64},
}


def _raster(config: Any) -> Pictures:
    """A square of pixels for every placeholder, and the grid of placeholders."""
    grid = torch.tensor([[1, high, wide] for high, wide in CELLS])
    counts = [high * wide for high, wide in CELLS]
    return Pictures(counts, {"pixel_values": noise(sum(counts), 14, 14, 3).tanh(), "image_grid_thw": grid})


def _folded(config: Any) -> Pictures:
    """A square of pixels in two frames for every placeholder, and no grid."""
    counts = [high * wide for high, wide in CELLS]
    return Pictures(counts, {"pixel_values": noise(sum(counts), 2, 6, 6, 3)})


ROWS = {
    "qwen4_exp": Row(
        thw(),
        {
            "text_config": {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
                "hc_lowrank": 16,
                "ple_layer_ids": [1, 5],  # counted from one
                "ple_embed_dim": 64,
                "heads_per_ngram": 2,
                "ngram_vocab_size_base": 50,
                "make_ngram_vocab_size_divisible_by": 8,
                "split_ngram_parts": 1,
                "indexer_n_heads": 16,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 16,
                "indexer_budget": ALL,
                "indexer_compress_ratio": 4,
            }
        },
        {"text_config": {"indexer_budget": FEW}},
        types=MM,
        note="indexers, and embeddings of n-grams at two layers: by default there are none",
    ),
    "glm5_next": Row(
        thw(),
        {
            "text_config": {
                "qk_rope_head_dim": 0,
                "qk_nope_head_dim": 16,
                "index_topk": ALL,
                "index_kpool": 4,
                "mlp_layer_types": ["dense", "sparse", "sparse"] * 2,
            },
            "vision_config": {"projection_intermediate_size": 64},
        },
        {"text_config": {"index_topk": FEW}},
        types=MM,
    ),
    "mistral_large4": Row(
        padded(14, breaks=True),
        {"text_config": {"index_topk": ALL}, "vision_config": {"image_size": 112}},
        {"text_config": {"index_topk": FEW}},
    ),
    "minimax_m3_vl": Row(
        thw(),
        {
            "text_config": {
                "rotary_dim": 8,
                "index_n_heads": 2,  # as many as heads of keys
                "index_block_size": 8,
                "index_topk_blocks": ALL // 8,
                "layer_types": ["full_attention", "minimax_m3_sparse"] * 3,
            },
            "merged_hidden_size": 256,
        },
        {"text_config": {"index_topk_blocks": 2}},
        note="every other layer is sparse, by default none is",
    ),
    "hy_v4_vl": Row(
        thw(time=1, newlines=True),
        {
            "text_config": {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
                "index_topk": ALL,
                "hc_mult": 4,
            },
            "vision_config": {"max_image_size": 56, "num_key_value_heads": 4},
        },
        {"text_config": {"index_topk": FEW}},
        types=MM,
    ),
    "dots3_note": Row(
        thw(time=1),
        {
            "text_config": {
                "layer_types": ["indexed_attention", "sliding_attention"] * 3,
                "head_dim": 16,
                "shared_experts_intermediate_size": 32,
                "per_layer_config": {
                    layer: {
                        "num_attention_heads": 2,
                        "num_key_value_heads": 2,
                        "kv_lora_rank": 16,
                        "qk_nope_head_dim": 8,
                    }
                    for layer in (1, 3, 5)
                },
                "index_topk": ALL,
            },
            "vision_config": {
                "mlp_layer_types": ["dense", "dense", "sparse"],
                "per_layer_config": {2: {"num_local_experts": 4, "num_experts_per_tok": 2}},
                "adapter_in_dim": 32,
                "adapter_out_dim": 64,
            },
            "audio_config": {
                "downsample_hidden_size": 8,
                "adapter_input_size": 32,
                "adapter_out_dim": 64,
                "feature_size": 16,
                "num_key_value_heads": 4,
            },
        },
        {"text_config": {"index_topk": FEW}},
    ),
    "inkling2": Row(_raster, _INKLING),
    "inkling2_loop": Row(
        _raster,
        merged(
            _INKLING,
            {
                "text_config": {
                    "loop_layer_index_start": 2,
                    "loop_layer_index_end": 4,
                    "loop_num_passes": 2,
                    "loop_gate_rank": 8,
                }
            },
        ),
    ),
    "inkling_mm_model": Row(
        _folded,
        {
            "text_config": {
                "intermediate_size": 64,
                "rel_extent": WINDOW,
                "mlp_layer_types": ["dense", "sparse"] * 3,
                "logits_mup_width_multiplier": 1.0,
            },
            "vision_config": {"patch_size": 6, "n_layers": 5},  # so many that scipy is not asked for
            "audio_config": {"n_mel_bins": 8, "mel_vocab_size": 8},
        },
        around=((START,), ()),
    ),
}
