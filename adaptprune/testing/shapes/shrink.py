"""The default config of any model type, with every size in it made small."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from adaptprune.testing.specimen import BOS, EOS, IMAGE, LAYERS, PAD, VIDEO, VOCABULARY, reserved

#: Shorter than every prompt, so that windows and chunks act.
WINDOW = 24
START, END = VOCABULARY["<|vision_start|>"], VOCABULARY["<|vision_end|>"]

#: Wherever such a field is.
TOKENS: dict[str, Any] = {
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "image_token_id": IMAGE,
    "image_token_index": IMAGE,
    "video_token_id": VIDEO,
    "video_token_index": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "image_bos_token_id": START,
    "im_start_id": START,
    "im_end_id": END,
    "boi_token_id": START,
    "eoi_token_id": END,
    "boi_token_index": START,
    "eoi_token_index": END,
    "video_start_token_id": reserved(0),
    "video_end_token_id": reserved(1),
    "audio_token_id": reserved(2),
    "audio_token_index": reserved(2),
    "audio_start_token_id": reserved(3),
    "audio_bos_token_id": reserved(3),
    "audio_end_token_id": reserved(4),
    "im_newline_id": reserved(5),
    "boa_token_id": reserved(6),
    "eoa_token_index": reserved(7),
    "sep_token_id": reserved(8),
    "user_token_id": reserved(9),
    "tie_word_embeddings": False,  # tied, a random model says its last word again and again
    "initializer_range": 0.2,  # large enough that layers and tokens differ visibly
    "init_std": 0.2,
}
DECODER: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 128,
    "dense_intermediate_size": 128,
    "ffn_dim": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "head_dim": 16,
    "swa_head_dim": 16,
    "max_position_embeddings": 2048,
    "sliding_window": WINDOW,
    "sliding_window_size": WINDOW,
    # experts
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "num_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "moe_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_experts_intermediate_size": 32,
    "moe_hidden_size": 32,
    # latent attention
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    # indexers
    "index_head_dim": 16,
    "index_n_heads": 16,  # with few, relu leaves many keys at the same score, and which are chosen is chance
    # linear attention
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 64,
    "mlp_dim": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "depth": 3,
    "num_attention_heads": 4,
    "num_heads": 4,
    "head_dim": 8,
    "image_size": 28,
    "patch_size": 7,
    "out_hidden_size": 64,
    "text_hidden_size": 64,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 2],
    "fullatt_block_indexes": [2],
    "window_size": 28,
    "num_local_experts": 4,
    "vocab_size": len(VOCABULARY),
}
#: Of the model as a whole, which seldom has sizes.
WHOLE: dict[str, Any] = {"projector_hidden_size": 64, "out_hidden_size": 64, "projection_dim": 64}


def small(config: PretrainedConfig, role: str = "whole") -> dict[str, Any]:
    """Arguments that make a small config of the same kind: of this config and of all those inside it.

    Only fields whose default is neither absent nor None get a size: what a type does not have by default, it is not
    given. Fields derived from others are left out, for the constructor to derive.

    Parameters
    ----------
    role : str
        "whole", "decoder" or "tower": which table its sizes are from.
    """
    fields = config.to_dict()
    inner = {name: value for name, value in vars(config).items() if isinstance(value, PretrainedConfig)}
    if role == "whole" and "text_config" not in inner:
        role = "decoder"  # Chameleon's decoder is configured by the whole
    table = {"whole": WHOLE, "decoder": DECODER, "tower": TOWER}[role]
    made: dict[str, Any] = {
        name: value for name, value in {**table, **TOKENS}.items() if fields.get(name) is not None or name in NEEDED
    }
    made = {name: value for name, value in made.items() if name in fields}
    if fields.get("num_key_value_heads") is not None and role == "tower":
        equal = fields["num_key_value_heads"] == fields.get("num_attention_heads", fields.get("num_heads"))
        made["num_key_value_heads"] = 4 if equal else 2
    if "kv_lora_rank" in made:
        made["num_key_value_heads"] = 4  # the latent is spread over all heads
        made.pop("head_dim", None)
    if role == "decoder" and fields.get("layer_types"):
        made["layer_types"] = kinds_of(fields["layer_types"], LAYERS)
    for name, value in inner.items():
        made[name] = {"model_type": value.model_type, **small(value, "decoder" if name == "text_config" else "tower")}
    return made


#: Given to types that have none by default, too.
NEEDED = ("pad_token_id", "bos_token_id", "eos_token_id", "image_token_id", "video_token_id")


def kinds_of(layers: list[str], count: int) -> list[str]:
    """Every kind of layer, in the order in which they come, again and again."""
    kinds = list(dict.fromkeys(layers))
    return (kinds * count)[:count]


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The first with what the second says, dict by dict. A value that is DROP removes the argument."""
    made = dict(base)
    for name, value in over.items():
        if value is DROP:
            made.pop(name, None)
        elif isinstance(value, dict) and isinstance(made.get(name), dict) and not name.startswith("rope"):
            made[name] = merged(made[name], value)
        else:
            made[name] = value
    return made


#: Leaves an argument at its default.
DROP: Any = object()
