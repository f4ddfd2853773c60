"""Attention inside the vision tower, from the query and key states of one call of its attention function.

Pictures may lie in one sequence (a mask, or lengths of their parts), in rows of a batch, or come in calls of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from adaptprune.hooks.seams.attention import Watched

LOWEST = torch.finfo(torch.float32).min
#: Rows of attention that are made at a time.
CHUNK = 512


def class_row(seen: Watched, place: int) -> Tensor:
    """What the class token at a place attends to, (H, B * S), float32."""
    count = seen.query.shape[2]
    place %= count
    lines = [rows[:, 0] for rows, _ in _rows(seen, slice(place, place + 1))]
    return torch.stack(lines, dim=1).flatten(1)


def received(seen: Watched) -> Tensor:
    """What each place receives from all that see it, in the mean, (H, B * S), float32; padding does not count."""
    batch, heads, count = seen.query.shape[0], seen.query.shape[1], seen.key.shape[2]
    total = torch.zeros(heads, batch, count, device=seen.key.device)
    seers = torch.zeros(batch, count, device=seen.key.device)
    for part in _parts(seen):
        keys = part.inside
        real = torch.zeros(batch, part.stop - part.start, dtype=torch.bool, device=seen.key.device)
        for rows in _slices(keys.query.shape[2]):
            real |= _visible(keys, rows).any(dim=1)
        for rows in _slices(keys.query.shape[2]):
            who = (
                real[:, rows] if keys.query.shape[2] == real.shape[1] else real.new_ones(batch, rows.stop - rows.start)
            )
            for row, (lines, shown) in enumerate(_rows(keys, rows)):
                total[:, row, part.start : part.stop] += (lines * who[row][:, None]).sum(dim=1)
                seers[row, part.start : part.stop] += (shown & who[row][:, None]).sum(dim=0)
    return (total / seers.clamp_min(1)).flatten(1)


@dataclass(frozen=True)
class _Part:
    """Places of a sequence that see one another and nothing else."""

    start: int
    stop: int
    inside: Watched


def _parts(seen: Watched) -> Iterator[_Part]:
    count = seen.key.shape[2]
    ends = [0, count] if seen.lengths is None else seen.lengths.tolist()
    for start, stop in pairwise(ends):
        states = {name: getattr(seen, name)[:, :, start:stop] for name in ("query", "key")}
        yield _Part(start, stop, seen._replace(**states, lengths=None) if seen.lengths is not None else seen)


def _slices(count: int) -> Iterator[slice]:
    for start in range(0, count, CHUNK):
        yield slice(start, min(count, start + CHUNK))


def _rows(seen: Watched, rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each row of the batch, some queries' probabilities, (H, q, S), float32, and what they see, (q, S)."""
    shown = _visible(seen, rows)
    for row in range(seen.query.shape[0]):
        query = seen.query[row : row + 1, :, rows].transpose(1, 2)
        scores = seen.logits(query, seen.key[row : row + 1])[0]
        if (bias := _bias(seen.mask, row, rows)) is not None:
            scores = scores + bias.to(scores.device)
        visible = shown[row].expand(scores.shape[1:])
        yield torch.softmax(scores.masked_fill(~visible, LOWEST), dim=-1), visible


def _bias(mask: Any, row: int, rows: slice) -> Tensor | None:
    """What an additive mask adds, (1 or H, q or 1, S)."""
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.dtype == torch.bool:
        return None
    line = mask[row if mask.shape[0] > 1 else 0]
    return (line[:, rows] if line.shape[1] > 1 else line).float()


def _visible(seen: Watched, rows: slice) -> Tensor:
    """Which keys some queries see, (B, q or 1, S), bool."""
    mask, (batch, count), device = seen.mask, (seen.query.shape[0], seen.key.shape[2]), seen.key.device
    if isinstance(mask, BlockMask):
        line = torch.arange(batch, device=device)[:, None, None]
        asked = torch.arange(rows.start, rows.stop, device=device)[None, :, None]
        shown = mask.mask_mod(line, torch.zeros_like(line), asked, torch.arange(count, device=device)[None, None])
        return shown.expand(batch, rows.stop - rows.start, count)
    if not isinstance(mask, Tensor):
        return torch.ones(batch, rows.stop - rows.start, count, dtype=torch.bool, device=device)
    if mask.ndim == 2:
        return (mask != 0).to(device)[:, None].expand(batch, rows.stop - rows.start, count)
    lines = mask[:, 0]
    lines = lines[:, rows] if lines.shape[1] > 1 else lines
    lines = lines if mask.dtype == torch.bool else _open(lines)
    return lines.to(device).expand(batch, rows.stop - rows.start, count)


def _open(lines: Tensor) -> Tensor:
    """Where an additive mask lets a query see: anywhere but at the lowest number of its type, or below half of it."""
    return lines.float() > torch.finfo(lines.dtype).min / 2
