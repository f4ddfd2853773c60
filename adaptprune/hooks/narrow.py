"""Cutting what transformers hands to a decoder layer down to the tokens and keys that the layer holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.state import Call, places


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of dimension 1 of a (B or 1, L, ...) tensor, (B, S, ...); padding (-1) repeats row 0, which nothing sees."""
    if rows.shape[0] == 1:
        return tensor[:, rows[0].clamp_min(0)]
    lines = torch.arange(rows.shape[0], device=rows.device)[:, None]
    return tensor.expand(rows.shape[0], *tensor.shape[1:])[lines, rows.clamp_min(0)]


def layer_kwargs(call: Call, layer: int, kwargs: dict[str, Any], backend: str) -> dict[str, Any]:
    """Keyword arguments of a decoder layer, narrowed; the same object if there is nothing to change."""
    stage = call.stage_at(layer)
    if stage not in call.state.views:
        return kwargs
    changed = dict(kwargs)
    rows = call.rows_at(layer)
    if rows is not None:
        if kwargs.get("position_embeddings") is not None:
            changed["position_embeddings"] = _once(
                call, stage, kwargs["position_embeddings"], lambda pair: tuple(take(part, rows) for part in pair)
            )
            # Positions are in the embeddings already. Flash attention would read the gaps that pruning leaves in
            # position_ids as borders between packed sequences.
            changed["position_ids"] = None
        elif kwargs.get("position_ids") is not None:
            changed["position_ids"] = take(kwargs["position_ids"], rows)
    changed["attention_mask"] = _once(
        call, stage, kwargs.get("attention_mask"), lambda mask: narrow_mask(call, layer, mask, backend)
    )
    return changed


def _once(call: Call, stage: int, given: Any, work: Any) -> Any:
    """Narrow each object once per stage and forward, not once per layer."""
    key = (stage, id(given))
    if key not in call.narrowed:
        call.narrowed[key] = (given, work(given))  # `given` is kept alive so that its id stays its own
    return call.narrowed[key][1]


def narrow_mask(call: Call, layer: int, mask: Any, backend: str) -> Any:
    """The attention mask of a layer, whatever its form: none, (B, S), (B, 1, L, S) or flex attention's block mask."""
    stage = call.stage_at(layer)
    assert stage is not None
    view = call.state.views[stage]
    if mask is None and not view.padded:
        return None
    columns = view.columns(call.total)  # positions
    held = columns >= 0
    rows = call.rows_at(layer)
    if rows is None:
        rows = torch.arange(call.length, device=call.device).expand(call.batch, -1)
    if mask is None:
        if backend.startswith("flash"):
            return held
        causal = columns[:, None, None, :] <= (rows + call.past)[:, None, :, None]
        return causal & held[:, None, None, :]
    if call.incoming is not None:  # positions to the columns of the mask that the model made
        columns = places(call.incoming, call.total).gather(1, columns.clamp_min(0))
    columns, rows = columns.clamp_min(0), rows.clamp_min(0)
    if not isinstance(mask, Tensor):
        return _narrow_block_mask(mask, rows, columns, held)
    if mask.ndim == 2:
        return mask.gather(1, columns) & held.to(mask.dtype)
    if mask.ndim != 4:
        raise AdaptPruneError(f"an attention mask with {mask.ndim} dimensions cannot be pruned: use 2 or 4.")
    line = torch.arange(call.batch, device=call.device)[:, None, None]
    full = mask.expand(call.batch, *mask.shape[1:])
    cut = full[line, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, heads or 1, S_q, S)
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return cut.masked_fill(~held[:, None, None, :], hidden)


def _narrow_block_mask(mask: Any, rows: Tensor, columns: Tensor, held: Tensor) -> Any:
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    if not isinstance(mask, BlockMask):
        raise AdaptPruneError(f"an attention mask of type {type(mask).__name__} cannot be pruned: pass a tensor.")

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask.mask_mod(batch, head, rows[batch, query], columns[batch, key]) & held[batch, key]

    batch, heads = rows.shape[0], mask.shape[1]
    return create_block_mask(mask_mod, batch, heads, rows.shape[1], columns.shape[1], device=rows.device)
