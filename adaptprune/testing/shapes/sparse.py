"""Types whose layers choose the keys they attend to (indexers), and others that carry state from layer to layer."""

from __future__ import annotations

from adaptprune.testing.shapes.row import Row, thw
from adaptprune.testing.shapes.sized import padded

MM = "mm_token_type_ids"
#: Fewer than the keys of a prompt; so many that they are never too few.
FEW, ALL = 16, 512


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
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 16,
                "indexer_budget": ALL,
                "indexer_compress_ratio": 4,
            }
        },
        {"text_config": {"indexer_budget": FEW}},
        types=MM,
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
                "index_block_size": 8,
                "index_topk_blocks": ALL // 8,
                "layer_types": ["full_attention", "minimax_m3_sparse"] * 3,  # by default none is sparse
            },
            "merged_hidden_size": 256,
        },
        {"text_config": {"index_topk_blocks": 2}},
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
}
