"""Rows of attention: probabilities of chosen tokens, from the query and key states of one layer.

The states are after RoPE and norms, whatever the model (`adaptprune.hooks.seams.attention` hands them over); the
model's own attention kernel stays on. A layer that has yet to run is asked for its states first (`peek`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.narrow import take
from adaptprune.hooks.seams import calls
from adaptprune.hooks.seams.attention import Watched, peek
from adaptprune.hooks.seams.layers import attention_of, normalised
from adaptprune.hooks.state import Call, places

LOWEST = torch.finfo(torch.float32).min


def attention_rows(call: Call, layer: int, seen: Watched, asked: Tensor, row: int | None = None) -> Tensor:
    """Attention probabilities of some tokens at a layer, (B, H, T, S), float32.

    Parameters
    ----------
    asked : Tensor, (B, T)
        Of each sample, places of those tokens among the incoming ones.
    row : int, optional
        The one sample that `asked`, (1, T), speaks of.
    """
    rows = call.rows_at(layer)
    slots = asked
    if rows is not None:
        mine = rows if row is None else rows[row : row + 1]
        slots = places(mine, call.length).gather(1, asked)
    device = seen.query.device
    lines = slice(None) if row is None else slice(row, row + 1)
    states = take(seen.query[lines].transpose(1, 2), slots.to(device))  # (B, T, H, d)
    scores = seen.logits(states, seen.key[lines])
    return torch.softmax(scores + _visible(call, layer, seen, asked, slots, lines)[:, None].to(device), dim=-1)


def _visible(call: Call, layer: int, watched: Watched, asked: Tensor, slots: Tensor, lines: slice) -> Tensor:
    """Additive mask of each sample's chosen rows, (B, T, S), float32."""
    mask, window = watched.mask, watched.window
    if isinstance(mask, Tensor) and mask.ndim == 4:
        row = take(mask[:, 0].expand(call.batch, *mask.shape[2:])[lines], slots)
        if mask.dtype != torch.bool:
            return row.float()
        seen = row
    elif isinstance(mask, BlockMask):
        line = torch.arange(call.batch, device=slots.device)[lines][:, None, None]
        column = torch.arange(mask.seq_lengths[1], device=slots.device)[None, None]
        seen = mask.mask_mod(line, torch.zeros_like(line), slots[..., None], column)
    else:
        columns, place = call.columns_at(layer)[lines][:, None], (call.past + asked)[..., None]
        seen = (columns >= 0) & (columns <= place)
        if window is not None:  # flash attention is told the window instead of a mask
            seen = seen & (columns > place - window)
        if call.token_mask is not None:
            known = call.token_mask.to(call.device).bool()[lines]
            seen = seen & known.gather(1, columns[:, 0].clamp_min(0))[:, None]
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, LOWEST)


def next_attention(
    call: Call, layer: int, module: nn.Module, hidden: Tensor, arguments: Any, mask: Any
) -> list[Tensor]:
    """By sample, the last prompt token's probabilities, (H, S), as a layer that has yet to run would have them.

    Parameters
    ----------
    module : nn.Module
        The layer.
    hidden : Tensor, (B, S, D)
        What it is about to read. Tokens of earlier forwards are not looked at.
    arguments
        Its other arguments, of all tokens of the forward.
    mask
        The attention mask, of what it holds.
    """
    rows = call.rows_at(layer)
    rows = call.all_rows() if rows is None else rows
    seen = peek(attention_of(module), normalised(module, hidden), _narrowed(arguments, rows))._replace(mask=mask)
    asked = call.last_row()[:, None]
    slots = places(rows, call.length).gather(1, asked)
    logits = seen.logits(take(seen.query.transpose(1, 2), slots), seen.key)[:, :, 0]  # (B, H, S)
    visible = _visible(call, layer, seen, asked, slots, slice(None))[:, 0, -logits.shape[-1] :]
    return list(torch.softmax(logits + visible[:, None].to(logits.device), dim=-1))


def affinity(call: Call, module: nn.Module, hidden: Tensor, arguments: Any) -> list[Tensor]:
    """By sample, ``q . k / sqrt(d)`` of the instruction's queries and of all keys, without RoPE, (H, T, S), float32.

    Parameters
    ----------
    module : nn.Module
        Layer 0, which has yet to run.
    hidden : Tensor, (B, L, D)
    arguments
        Its other arguments.
    """
    seen = peek(attention_of(module), normalised(module, hidden), _unturned(arguments))
    seen = seen._replace(scaling=None, softcap=None)
    found = []
    for row, words in enumerate(call.instructions()):
        query = seen.query[row : row + 1, :, words.to(hidden.device)].transpose(1, 2)
        found.append(seen.logits(query, seen.key[row : row + 1])[0])
    return found


def _narrowed(arguments: Any, rows: Tensor) -> Any:
    """A layer's position embeddings, cut to the tokens that it reads."""
    if arguments.get(calls.ROTARY) is None:
        return arguments
    pair = tuple(take(part, rows) for part in _rotary(arguments, "the attention that a layer has yet to pay", "fastv"))
    return {**arguments, calls.ROTARY: calls.as_rotary(pair), calls.POSITIONS: None}


def _unturned(arguments: Any) -> Any:
    """A layer's arguments with position embeddings that turn nothing."""
    if arguments.get(calls.ROTARY) is None:
        return arguments
    cos, sin = _rotary(arguments, "layer 0's queries and keys without position", "divprune")
    return {**arguments, calls.ROTARY: calls.as_rotary((torch.ones_like(cos), torch.zeros_like(sin)))}


def _rotary(arguments: Any, what: str, instead: str) -> tuple[Tensor, ...]:
    try:
        return calls.rotary(arguments)
    except calls.WithoutRotary as error:
        raise AdaptPruneError(f"{what} cannot be had here, for {error}: use {instead}.") from None
