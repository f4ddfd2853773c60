"""Cutting what transformers hands to a decoder layer down to the tokens and keys that the layer holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.addons import biased
from adaptprune.hooks.seams.calls import CHOSEN, KNOWN, MASK, POSITIONS, ROTARY, as_rotary
from adaptprune.hooks.state import Call


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of dimension 1 of a (B or 1, L, ...) tensor, (B, S, ...); padding (-1) repeats row 0, which nothing sees."""
    rows = rows.to(tensor.device)
    if rows.shape[0] == 1:
        return tensor[:, rows[0].clamp_min(0)]
    lines = torch.arange(rows.shape[0], device=rows.device)[:, None]
    return tensor.expand(rows.shape[0], *tensor.shape[1:])[lines, rows.clamp_min(0)]


def take_tokens(tensor: Tensor, rows: Tensor, dim: int) -> Tensor:
    """Rows of dimension 1, or of dimension 2 behind an axis of its own, as `take`."""
    return take(tensor, rows) if dim == 1 else torch.stack([take(part, rows) for part in tensor])


def token_dim(call: Call, layer: int, hidden: Tensor) -> int:
    """The dimension of a layer's hidden states that counts tokens: 1 of (B, L, ...), or 2 of (streams, B, L, D).

    A decoder that hands on its last tokens alone from some layer on is noticed here.

    Raises
    ------
    AdaptPruneError
        No dimension counts the tokens that are left.
    """
    tokens, shape = call.incoming(layer), tuple(hidden.shape)
    if len(shape) == 4 and shape[1:3] == (call.batch, tokens) and shape[:2] != (call.batch, tokens):
        return 2
    if len(shape) >= 3 and shape[0] == call.batch:
        if shape[1] < tokens:
            call.cut_to(layer, shape[1])
            return 1
        if shape[1] == tokens:
            return 1
    raise AdaptPruneError(
        f"layer {layer} is handed hidden states of shape {shape} where {tokens} tokens of {call.batch} prompts are "
        "left: this model cannot be pruned."
    )


def stream_of(hidden: Tensor, dim: int) -> Tensor:
    """The hidden states that tokens are compared by, (B, L, D): the first stream, where there are several."""
    if hidden.ndim == 3:
        return hidden
    return hidden[0] if dim == 2 else hidden[:, :, 0]


def layer_arguments(
    call: Call, layer: int, arguments: dict[str, Any], backend: str, dtype: torch.dtype
) -> dict[str, Any]:
    """A decoder layer's arguments by name, narrowed; the same object if there is nothing to change.

    Parameters
    ----------
    dtype
        Of its hidden states.
    """
    if call.view_at(layer) is None:
        return arguments
    changed, rows, mask = dict(arguments), call.rows_at(layer), arguments.get(MASK)
    if rows is not None:
        if backend.startswith("flash") and arguments.get(ROTARY) is not None:
            # Positions are in the embeddings already. Flash attention would read the gaps that pruning leaves in
            # position_ids as borders between packed sequences.
            changed[POSITIONS] = None
        for name, value in changed.items():
            if name == CHOSEN:
                continue  # by layers that held what this one holds: `Selector.check` sees to that
            if name != MASK and name.endswith("mask") and (value is None or value.ndim == 2):
                changed[name] = _token_mask(call, rows, value)
            elif name != MASK and value is not None:
                changed[name] = _once(call, layer, value, partial(_per_token, call, rows, name, value))
    else:
        for name, value in arguments.items():
            if isinstance(value, Tensor) and name not in {*KNOWN, CHOSEN} and call.total in value.shape[2:]:
                raise _strange(call, name, value)
    if layer not in call.keyless or not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)):
        changed[MASK] = _once(call, layer, mask, lambda: _layer_mask(call, layer, mask, backend, dtype))
    elif rows is not None:
        changed[MASK] = _token_mask(call, rows, mask)
    return changed


def _layer_mask(call: Call, layer: int, mask: Any, backend: str, dtype: torch.dtype) -> Any:
    """What a layer is handed as its mask of keys: those of dropped tokens cut out, and the bias of kept ones added."""
    cut = narrow_mask(call, layer, mask, backend)
    return cut if layer in call.keyless else biased(call, layer, cut, dtype)


def _token_mask(call: Call, rows: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask of a layer without keys, (B, S): which of its tokens are real. None if all are."""
    real = rows >= 0
    if mask is None:
        return None if bool(real.all()) else real
    return take(mask[:, -call.length :], rows) & real.to(mask.device, mask.dtype)


def _per_token(call: Call, rows: Tensor, name: str, value: Any) -> Any:
    """An argument of a layer without the values of dropped tokens; the same object if it has no value per token.

    Values per token are told by their shape: as many as the forward has tokens, behind the batch, which may stand
    behind axes of its own. In any other place that number is no accident either, and what it stands for is not known
    here, so it is refused. A mapping that nothing is cut from stays the same object: layers may write to it.
    """
    if isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value):
        parts = [_per_token(call, rows, name, part) for part in value]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else type(value)(parts)
    if isinstance(value, dict):
        cut = {key: _per_token(call, rows, f"{name}[{key!r}]", part) for key, part in value.items()}
        return value if all(cut[key] is part for key, part in value.items()) else cut
    if not isinstance(value, Tensor) or call.length == 1:
        return value
    if call.length not in value.shape:
        if call.batch > 1 and call.batch * call.length in value.shape:
            raise _strange(call, name, value)  # all prompts in one line
        return value
    if name not in KNOWN and call.total in value.shape[3:]:
        raise _strange(call, name, value)  # one that counts keys as well, as a mask by another name does
    batches = (1, call.batch)
    for dim in (1, 2):
        if value.ndim > dim and value.shape[dim] == call.length and value.shape[dim - 1] in batches:
            return take_tokens(value, rows, dim)
    raise _strange(call, name, value)


def _strange(call: Call, name: str, value: Tensor) -> AdaptPruneError:
    return AdaptPruneError(
        f"the decoder's layers are handed {name} of shape {tuple(value.shape)} in a forward of {call.length} tokens "
        f"after {call.past}, and it is not known how to take dropped tokens out of it: this model cannot be pruned "
        "with it."
    )


def _once(call: Call, layer: int, given: Any, work: Callable[[], Any]) -> Any:
    """Narrow each object once per forward and kind of layer, not once per layer."""
    key = (call.stage_at(layer), call.window_at(layer), call.tail, layer in call.keyless, id(given))
    if key not in call.narrowed:
        call.narrowed[key] = (given, work())  # `given` is kept alive so that its id stays its own
    return call.narrowed[key][1]


def narrow_mask(call: Call, layer: int, mask: Any, backend: str) -> Any:
    """The attention mask of a layer, whatever its form: none, (B, S), (B, 1, L, S) or flex attention's block mask.

    The model's mask ends with the last position; a sliding window's begins later than position 0, and a pruned layer
    may hold keys from before that, which are hidden here.
    """
    columns = call.columns_at(layer)  # positions
    if isinstance(mask, BlockMask):
        first = call.total - mask.seq_lengths[1]
    elif isinstance(mask, Tensor):
        first = call.total - mask.shape[-1]
    elif mask is not None:
        raise AdaptPruneError(f"an attention mask of type {type(mask).__name__} cannot be pruned: pass a tensor.")
    else:
        first = max(0, call.past + 1 - (call.window_at(layer) or call.total))
    held = (columns >= 0) & (columns >= first)
    if isinstance(mask, Tensor) and mask.ndim == 4 and call.tail is None and 1 < mask.shape[2] < call.length:
        call.cut_to(layer, mask.shape[2])  # the decoder cut its last tokens off where fewer than these are left
    rows = call.rows_at(layer)
    rows = call.all_rows() if rows is None else rows
    if mask is None:
        if bool(held.all()):
            return None
        if backend.startswith("flash"):
            return held
        causal = columns[:, None, None, :] <= (rows + call.past)[:, None, :, None]
        return causal & held[:, None, None, :]
    device = mask.kv_num_blocks.device if isinstance(mask, BlockMask) else mask.device
    if isinstance(mask, Tensor) and mask.ndim == 4 and call.tail == mask.shape[2]:
        rows = rows - (call.length - call.tail)  # the model's own mask was cut, too
    held, rows = held.to(device), rows.clamp_min(0).to(device)
    columns = (columns - first).clamp_min(0).to(device)
    if isinstance(mask, BlockMask):
        return _narrow_block_mask(mask, rows, columns, held)
    if mask.ndim == 2:
        return mask.gather(1, columns) & held.to(mask.dtype)
    if mask.ndim != 4:
        raise AdaptPruneError(f"an attention mask with {mask.ndim} dimensions cannot be pruned: use 2 or 4.")
    line = torch.arange(call.batch, device=device)[:, None, None]
    full = mask.expand(call.batch, *mask.shape[1:])
    cut = full[line, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, heads or 1, S_q, S)
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return cut.masked_fill(~held[:, None, None, :], hidden)


def _narrow_block_mask(mask: BlockMask, rows: Tensor, columns: Tensor, held: Tensor) -> BlockMask:
    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask.mask_mod(batch, head, rows[batch, query], columns[batch, key]) & held[batch, key]

    batch, heads = rows.shape[0], mask.shape[1]
    return create_block_mask(mask_mod, batch, heads, rows.shape[1], columns.shape[1], device=rows.device)


def whole_conversation(call: Call, layer: int, arguments: dict[str, Any], backend: str) -> dict[str, Any]:
    """A layer's arguments as if this forward had begun at position 0, for `Call.anew`."""
    assert call.rotary is not None
    dtype = call.rotary[0].dtype
    mask = _once(call, layer, call.state, lambda: _causal_mask(call, layer, dtype, backend))
    return {**arguments, ROTARY: as_rotary(call.rotary), POSITIONS: None, MASK: mask}


def _causal_mask(call: Call, layer: int, dtype: torch.dtype, backend: str) -> Any:
    """Every position sees itself and what came before it, if that is no padding and inside the window."""
    padding = call.token_mask
    if backend.startswith("flash"):
        return padding
    place = torch.arange(call.total, device=call.device)
    seen = place[None, :] <= place[:, None]
    if (width := call.window_at(layer)) is not None:
        seen &= place[None, :] > place[:, None] - width
    allowed = seen[None].expand(call.batch, -1, -1)
    if padding is not None:
        itself = torch.eye(call.total, dtype=torch.bool, device=call.device)  # so that no row is empty
        allowed = allowed & (padding.to(call.device)[:, None, :] > 0) | itself
    if backend == "flex_attention":
        return create_block_mask(
            lambda batch, head, query, key: allowed[batch, query, key],
            call.batch, None, call.total, call.total, device=call.device,
        )  # fmt: skip
    if backend != "eager":
        return allowed[:, None]
    hidden = torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=call.device).masked_fill(~allowed, hidden)[:, None]
