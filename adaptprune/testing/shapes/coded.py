"""Types whose pictures become codes, that is words of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch

from adaptprune.testing.shapes.row import Pictures, Row, noise, squares
from adaptprune.testing.shapes.sized import CELLS
from adaptprune.testing.specimen import IMAGE, VOCABULARY, reserved

#: Ids of codes: the last places of the vocabulary.
CODES = 16
FIRST = reserved(40 - CODES)
NOTE = "few codes: cells of a picture have the same features"

_VQ: dict[str, Any] = {
    "base_channels": 32,
    "channel_multiplier": [1, 2],  # halves height and width once
    "num_res_blocks": 1,
    "latent_channels": 8,
    "embed_dim": 8,
}


def _letters(number: int) -> str:
    """As Chameleon's tokenizer spells a number: a letter a digit, and a Z."""
    return "".join(chr(ord("A") + int(digit)) for digit in str(number)) + "Z"


def _spread(model: Any) -> None:
    """Codes and what they stand for equally far apart, or all pictures would have the same few codes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "quantize.embedding" in name:
                parameter.normal_()
            elif ".quant_conv.weight" in name:
                parameter.normal_(std=2 if model.config.model_type == "chameleon" else 1)


def _cropped(*, newlines: bool) -> Any:
    """Pictures padded to one size, with `image_sizes` in pixels, two to a placeholder."""

    def made(config: Any) -> Pictures:
        sizes = torch.tensor(CELLS) * 2
        high, wide = sizes.max(0).values.tolist()
        counts = [rows * (columns + newlines) for rows, columns in CELLS]
        return Pictures(counts, {"pixel_values": noise(len(CELLS), 3, high, wide), "image_sizes": sizes})

    return made


ROWS = {
    "chameleon": Row(
        squares(16, size=8),
        {
            "vq_config": {**_VQ, "num_embeddings": CODES, "resolution": 8, "attn_type": "vanilla"},
            "vocabulary_map": {"<image>": IMAGE, **{f"IMGIMG{_letters(code)}": FIRST + code for code in range(CODES)}},
        },
        after=_spread,
        note=NOTE,
    ),
    "emu3": Row(
        _cropped(newlines=True),
        {
            "vq_config": {**_VQ, "codebook_size": CODES, "hidden_size": 64, "num_attention_heads": 1},
            "vocabulary_map": {
                "<image>": IMAGE,
                "<|extra_200|>": VOCABULARY["[IMG_BREAK]"],
                **{f"<|visual token {code:06d}|>": FIRST + code for code in range(CODES)},
            },
        },
        after=_spread,
        note=NOTE,
    ),
    "apertus1p5": Row(
        _cropped(newlines=False),
        {
            "vision_config": {**_VQ, "codebook_size": CODES - 4, "attn_resolutions": [], "resolution": 16},
            "audio_config": {"codebook_size": 4, "num_filters": 4, "hidden_size": 16, "codebook_dim": 16},
            "image_token_offset": FIRST,
            "audio_token_offset": FIRST + CODES - 4,
        },
        after=_spread,
        note=NOTE,
    ),
}
