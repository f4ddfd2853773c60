"""Tokens for the tests of rules before the decoder."""

from __future__ import annotations

import torch

from adaptprune import VisualTokens
from adaptprune.cues import TowerLayer


def places(*grids: tuple[int, int]) -> torch.Tensor:
    """Grids of some rows and columns, one behind the other."""
    cells = [(n, y, x) for n, (rows, columns) in enumerate(grids) for y in range(rows) for x in range(columns)]
    return torch.tensor(cells)


def numbered(coords: torch.Tensor, **cues) -> VisualTokens:
    """Tokens whose states are their numbers, of width 1."""
    hidden = torch.arange(len(coords), dtype=torch.float32)[:, None]
    return VisualTokens(hidden=hidden, coords=coords, num_layers=4, **cues)


def layer(attention, keys=None, query=None) -> TowerLayer:
    """A tower's layer; attention as (N,) is one head's."""
    rows = torch.tensor(attention, dtype=torch.float32)
    rows = rows if rows.ndim == 2 else rows[None]
    keys = torch.zeros(len(rows), rows.shape[1], 1) if keys is None else keys
    return TowerLayer(rows, keys, query)


def watched(coords: torch.Tensor, attention, **cues) -> VisualTokens:
    """Tokens with attention at the tower's last layer but one."""
    return numbered(coords, tower={-2: layer(attention)}, **cues)


def many(*grids: tuple[int, int], alike: bool = False, dtype: torch.dtype = torch.float32) -> VisualTokens:
    """Every cue of these rules; where all tokens are alike, all scores are equal."""
    generator, coords = torch.Generator().manual_seed(0), places(*grids)
    count = len(coords)

    def drawn(*shape: int, axis: int) -> torch.Tensor:
        whole = torch.randn(*shape, generator=generator)
        return whole.narrow(axis, 0, 1).expand(shape).contiguous() if alike else whole

    tower = {
        number: TowerLayer(drawn(2, count, axis=1).exp() / count, drawn(2, count, 3, axis=1), torch.ones(2, 3))
        for number in (0, -1, -2)
    }
    return VisualTokens(
        hidden=drawn(count, 6, axis=0).to(dtype),
        coords=coords,
        num_layers=4,
        features=drawn(count, 6, axis=0).to(dtype),
        affinity=drawn(2, 3, count, axis=2),
        tower=tower,
        class_state=torch.ones(6, dtype=dtype),
    )
