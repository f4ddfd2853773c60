"""Types whose pictures come with their height and width, in pixels or in patches."""

from __future__ import annotations

from typing import Any

import torch

from adaptprune.testing.shapes.row import Pictures, Row, noise
from adaptprune.testing.shapes.shrink import END, START
from adaptprune.testing.specimen import VOCABULARY, reserved

#: Heights and widths in placeholders.
CELLS = ((4, 5), (2, 7))


#: After every row but the last, and after the last.
BREAKS = (VOCABULARY["[IMG_BREAK]"], VOCABULARY["[IMG_END]"])


def padded(unit: int, *, breaks: bool = False) -> Any:
    """Pictures padded to one size, with `image_sizes`; a placeholder is a square of `unit` pixels.

    Parameters
    ----------
    breaks : bool
        Whether rows are set apart by tokens of text, as Pixtral's processor does.
    """

    def made(config: Any) -> Pictures:
        sizes = torch.tensor(CELLS) * unit
        high, wide = sizes.max(0).values.tolist()
        pixels = noise(len(CELLS), 3, high, wide)
        for picture, (height, width) in zip(pixels, sizes.tolist(), strict=True):
            picture[:, height:] = 0
            picture[:, :, width:] = 0
        tensors = {"pixel_values": pixels, "image_sizes": sizes}
        rows = [wide for _, wide in CELLS] if breaks else None
        return Pictures([high * wide for high, wide in CELLS], tensors, rows, BREAKS)

    return made


def packed(merge: int, *, patch: int = 7) -> Any:
    """Patches of all pictures side by side, with `target_sizes`; a placeholder is `merge` x `merge` patches."""

    def made(config: Any) -> Pictures:
        sizes = torch.tensor(CELLS) * merge
        pixels = noise(1, 3, patch, patch * int(sizes.prod(1).sum()))
        return Pictures([high * wide for high, wide in CELLS], {"pixel_values": pixels, "target_sizes": sizes})

    return made


def _patches(config: Any) -> Pictures:
    """Rows of patches that become placeholders as they are; a token of text ends every row. One picture a prompt."""
    cells = CELLS[-1:]
    counts = [high * wide for high, wide in cells]
    newline = VOCABULARY["[IMG_BREAK]"]
    tensors = {"pixel_values": noise(1, sum(counts), 3 * 7 * 7)}
    return Pictures(counts, tensors, [wide for _, wide in cells], (newline, newline))


def _placed(config: Any) -> Pictures:
    """Patches padded to one number, with a column and a row each, -1 where there is none."""
    counts = [high * wide for high, wide in CELLS]
    places = torch.full((len(counts), max(counts), 2), -1)
    for number, (high, wide) in enumerate(CELLS):
        rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
        places[number, : high * wide] = torch.stack([columns.flatten(), rows.flatten()], -1)
    return Pictures(counts, {"pixel_values": noise(len(counts), max(counts), 3 * 8 * 8), "image_position_ids": places})


MARKS = {
    "image_start_id": START,
    "image_end_id": END,
    "slice_start_id": reserved(20),
    "slice_end_id": reserved(21),
    "newline_id": reserved(22),
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}

ROWS = {
    "lighton_ocr": Row(padded(14), {"vision_config": {"image_size": 112}}),
    "minicpm_ocr": Row(packed(2), {"insert_layer_id": 1, "vision_config": {"insert_layer_id": 1}}),
    "minicpmv4_7": Row(
        packed(4),
        {
            "insert_layer_id": 1,
            "vision_config": {"insert_layer_id": 1},
            "text_config": {"rope_parameters": MROPE},
            **MARKS,
        },
        types="mm_token_type_ids",
    ),
    "fuyu": Row(_patches, {"patch_size": 7, "image_size": 28}, around=((), ())),
    "gemma4_unified": Row(
        _placed,
        {
            "text_config": {
                "per_layer_config": {layer: {"head_dim": 32} for layer in (1, 3, 5)},
                "num_kv_shared_layers": 2,
            },
            "vision_config": {
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "mm_embed_dim": 32,
                "mm_posemb_size": 16,
                "output_proj_dims": 32,
                "initializer_range": 0.2,
            },
        },
        types="mm_token_type_ids",
        note="two layers share keys, by default none does",
    ),
}
