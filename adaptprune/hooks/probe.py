"""One row of attention: the last prompt token's probabilities, from the query and key states of one layer.

The states are after RoPE and norms, whatever the model (`adaptprune.hooks.seams.attention` hands them over); the
model's own attention kernel stays on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from adaptprune.hooks.narrow import take
from adaptprune.hooks.state import Call


def last_token_attention(
    call: Call,
    layer: int,
    query: Tensor,
    key: Tensor,
    mask: Any,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Attention probabilities of each sample's last prompt token, (B, H, S), float32.

    Parameters
    ----------
    query, key : Tensor, (B, H, L, d) and (B, H_kv, S, d)
        As handed to the attention function; grouped heads not repeated.
    mask
        The attention mask handed along: none, 2-D, 4-D (boolean or additive) or a block mask.
    scaling, softcap, window
        As handed to the attention function.
    """
    rows = call.rows_at(layer)
    last = call.last_row()
    if rows is not None:
        last = (rows == last[:, None]).int().argmax(dim=1)
    last = last.to(query.device)
    states = take(query.transpose(1, 2), last[:, None])[:, 0].float()  # (B, H, d)
    batch, heads, width = states.shape
    grouped = states.view(batch, key.shape[1], heads // key.shape[1], width)
    scores = torch.einsum("bgrd,bgsd->bgrs", grouped, key.float()).reshape(batch, heads, key.shape[2])
    scores = scores * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.softmax(scores + _visible(call, layer, last, mask, window)[:, None].to(scores.device), dim=-1)


def _visible(call: Call, layer: int, last: Tensor, mask: Any, window: int | None) -> Tensor:
    """Additive mask of each sample's last row, (B, S), float32."""
    if isinstance(mask, Tensor) and mask.ndim == 4:
        row = take(mask[:, 0].expand(call.batch, *mask.shape[2:]), last[:, None])[:, 0]
        if mask.dtype != torch.bool:
            return row.float()
        seen = row
    elif isinstance(mask, BlockMask):
        line = torch.arange(call.batch, device=last.device)[:, None]
        column = torch.arange(mask.seq_lengths[1], device=last.device)[None]
        seen = mask.mask_mod(line, torch.zeros_like(line), last[:, None], column)
    else:
        columns, place = call.columns_at(layer), (call.past + call.last_row())[:, None]
        seen = (columns >= 0) & (columns <= place)
        if window is not None:  # flash attention is told the window instead of a mask
            seen &= columns > place - window
        if call.token_mask is not None:
            seen &= call.token_mask.to(call.device).bool().gather(1, columns.clamp_min(0))
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)
