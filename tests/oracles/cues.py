"""Visual tokens with every cue filled in: random, of the shapes and kinds of value that a model gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptprune.cues import TowerLayer, VisualTokens

PATCHES, CHANNELS = 4, 3  # of each token, as the projector is handed them


@dataclass(frozen=True)
class Projector:
    """A small nonlinear projector, (N, g, Di) to (N, D): the g patches side by side, a hidden layer, tanh."""

    first: Tensor
    second: Tensor

    def __call__(self, patches: Tensor) -> Tensor:
        inside = torch.tanh(patches.flatten(1) @ self.first.to(patches.dtype))
        return inside @ self.second.to(patches.dtype)


def everything(
    rows: int = 4,
    columns: int = 5,
    grids: int = 1,
    heads: int = 4,
    width: int = 8,
    text: int = 3,
    seed: int = 0,
    *,
    layer: int = 2,
    num_layers: int = 32,
    has_class: bool = True,
) -> VisualTokens:
    """Visual tokens of `grids` grids of `rows` x `columns`, and `text` instruction tokens.

    Attention is sharp, as in models: a few tokens of every row have most of it; the last of `rows` is `attention`.
    Features are what the projector makes of `projector_input`. Neighbours resemble each other.
    """
    rng = np.random.default_rng(seed)
    coords = np.array([(g, y, x) for g in range(grids) for y in range(rows) for x in range(columns)], dtype=np.int64)
    count, head_width = len(coords), max(2, width // heads)
    scene = np.stack([np.sin(coords @ rng.normal(size=3) * 0.7 + rng.random() * 6) for _ in range(4)], axis=1)

    def per_token(channels: int, mean: float = 0.0) -> Tensor:
        values = scene @ rng.normal(size=(4, channels)) + 0.7 * rng.normal(size=(count, channels)) + mean
        return torch.from_numpy(values.astype(np.float32))

    def per_word(channels: int, mean: float = 0.0) -> Tensor:
        return torch.from_numpy((rng.normal(size=(text, channels)) + mean).astype(np.float32))

    projector = Projector(
        torch.from_numpy(rng.normal(size=(PATCHES * CHANNELS, 2 * width)).astype(np.float32) / 3),
        torch.from_numpy(rng.normal(size=(2 * width, width)).astype(np.float32)),
    )
    patches = per_token(PATCHES * CHANNELS).view(count, PATCHES, CHANNELS)
    looks = _attention(rng, (heads, text, count))
    angles = rng.random(size=(count, 1)) * 40 / 10.0 ** np.arange(head_width)
    return VisualTokens(
        hidden=per_token(width, 0.3),
        coords=torch.from_numpy(coords),
        attention=looks[:, -1].clone(),
        keys=per_token(2 * head_width),
        layer=layer,
        num_layers=num_layers,
        rows=looks,
        next_attention=_attention(rng, (heads, count)),
        rotated_keys=per_token(2 * head_width),
        text_rotated_keys=per_word(2 * head_width),
        text_hidden=per_word(width, 0.3),
        previous_hidden=per_token(width, 0.3),
        final=per_token(width),
        text_final=per_word(width),
        features=projector(patches),
        text=per_word(width),
        affinity=torch.from_numpy(rng.normal(size=(heads, text, count)).astype(np.float32)),
        tower={number: _tower(rng, heads, count, head_width, grids, has_class) for number in (-2, -1, 0)},
        projector_input=patches,
        project=projector,
        class_state=torch.from_numpy(rng.normal(size=width).astype(np.float32)) if has_class else None,
        rotary=tuple(torch.from_numpy(f(angles).astype(np.float32)) for f in (np.cos, np.sin)),
    )


def _attention(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Probabilities whose visual columns sum to a part of 1."""
    logits = rng.normal(size=shape) * 1.5
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    share = 0.1 + 0.5 * rng.random(size=(*shape[:-1], 1))
    return torch.from_numpy((weights / weights.sum(axis=-1, keepdims=True) * share).astype(np.float32))


def _tower(rng: np.random.Generator, heads: int, count: int, width: int, grids: int, has_class: bool) -> TowerLayer:
    """A layer of the tower; of several grids, each has its own class token."""
    query = rng.normal(size=(grids, heads, width)).astype(np.float32)
    own = torch.from_numpy(query[0] if grids == 1 else query.repeat(count // grids, axis=0))
    keys = torch.from_numpy(rng.normal(size=(heads, count, width)).astype(np.float32))
    return TowerLayer(_attention(rng, (heads, count)), keys, own if has_class else None)
