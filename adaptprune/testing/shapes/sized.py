"""Types whose pictures come with their height and width, in pixels or in patches."""

from __future__ import annotations

from typing import Any

import torch

from adaptprune.testing.shapes.row import Pictures, Row, noise
from adaptprune.testing.specimen import VOCABULARY

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


MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}

ROWS = {
    "minicpm_ocr": Row(packed(2), {"insert_layer_id": 1, "vision_config": {"insert_layer_id": 1}}),
    "fuyu": Row(_patches, {"patch_size": 7, "image_size": 28}, around=((), ())),
}
