"""Options that every rule has and that act behind the choice: packed positions, and a bias on the kept keys.

Packed positions: what a layer is handed as position embeddings is made anew for positions without the gaps that dropped
tokens leave. The bias goes in by the attention mask, as a number that is added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.holds import broken
from adaptprune.hooks.marks import bias_at, shift_at
from adaptprune.hooks.seams import Parts, attention
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams import rotary as seam
from adaptprune.hooks.seams.calls import POSITIONS, ROTARY
from adaptprune.hooks.seams.layers import chooses
from adaptprune.hooks.seams.rotary import Noted
from adaptprune.hooks.state import Call
from adaptprune.pruner import Pruner

#: By their identities, what a layer was handed and the shift, and what became of it.
Memo = dict[tuple[int, int], tuple[Any, Tensor, Any]]
#: Attention implementations that add a mask of numbers to what attention makes of keys.
ADDING = ("sdpa", "eager")


def check(pruner: Pruner, found: Parts, first: int) -> None:
    """Raise AdaptPruneError for an option that a model cannot have from layer `first` on."""
    if pruner.positions == "packed" and (why := _unpackable(found, first)) is not None:
        raise AdaptPruneError(f"positions='packed' does not suit this model: {why}. Use positions='original'.")
    if not pruner.key_bias:
        return
    check_added(attention.backend(found.decoder))
    if chooses(found.layers):
        raise AdaptPruneError(
            f"key_bias={pruner.key_bias} does not suit this model, whose sparse attention chooses keys by more than "
            "its mask: use key_bias=0."
        )


def check_added(backend: str) -> None:
    """Raise AdaptPruneError for an attention implementation that a bias on keys cannot be handed to."""
    if backend not in ADDING:
        raise AdaptPruneError(
            f"key_bias is added by the attention mask, and {backend} takes no mask of numbers: use key_bias=0, or load "
            "the model with attn_implementation='sdpa'."
        )


def _unpackable(found: Parts, first: int) -> str | None:
    """Why tokens that are left from a layer on cannot be numbered anew; None if they can."""
    behind = [number for number in range(first, len(found.layers)) if number not in found.keyless]
    memories = kv.layers_of(kv.new_cache(found.decoder.config))
    for number in behind:
        source = found.sources.get(number, number)
        width = kv.width(memories[source]) if source < len(memories) else None
        if width is not None:
            return f"layer {number} sees a window or chunk of {width} places, which are those of the whole prompt"
    return seam.why_not(found.decoder, [found.layers[number] for number in behind])


# -- positions ---------------------------------------------------------------------------------------------------------


def packed(call: Call, layer: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """A layer's arguments with the position embeddings of packed positions, still of all tokens of the forward.

    The same object if nothing has left before this layer.
    """
    shift = shift_at(call, layer)
    return arguments if shift is None else moved(arguments, shift, call.noted, call.packed)


def moved(arguments: dict[str, Any], shift: Tensor, noted: Noted, memo: Memo) -> dict[str, Any]:
    """A layer's arguments with the position embeddings of positions that are `shift`, (B, L) or (B, 1), less.

    Parameters
    ----------
    noted : Noted
        Those that were made in this forward.
    memo : dict
        What became of others in this forward, so that each is made once.
    """

    def once(handed: Any, work: Callable[[], Any]) -> Any:
        key = id(handed), id(shift)
        if key not in memo:
            memo[key] = handed, shift, work()
        return memo[key][2]

    changed, handed, ids = dict(arguments), arguments.get(ROTARY), arguments.get(POSITIONS)
    if handed is not None:
        changed[ROTARY] = once(handed, lambda: _again(handed, shift, noted))
    if isinstance(ids, Tensor):
        changed[POSITIONS] = once(ids, lambda: ids - shift.to(ids.device))
    return changed


def _again(handed: Any, shift: Tensor, noted: Noted) -> Any:
    made = noted.of(handed)
    if made is None:
        raise broken("nobody was seen to make the position embeddings that a layer is handed")
    places: Tensor = made.positions
    return made.again(places - shift.to(places.device))


# -- the bias ----------------------------------------------------------------------------------------------------------


def biased(call: Call, layer: int, mask: Any, dtype: torch.dtype) -> Any:
    """A layer's narrowed attention mask with the bias on its keys; the same object if there is none.

    Parameters
    ----------
    mask : Tensor or None
        None, or (B, heads or 1, S_q, S), boolean or additive.
    dtype
        Of the layer's hidden states.
    """
    bias = bias_at(call, layer)
    if bias is None:
        return mask
    if mask is None:
        rows, columns = call.rows_at(layer), call.columns_at(layer)
        rows = call.all_rows() if rows is None else rows
        mask = columns[:, None, None, :] <= (rows + call.past)[:, None, :, None]
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise AdaptPruneError(
            f"key_bias cannot be added to what layer {layer} is handed as its mask: pass one of 2 or 4 dimensions, "
            "or use key_bias=0."
        )
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    added: Tensor = mask + bias[:, None, None, :].to(mask.device, mask.dtype)
    return added.clamp_min(torch.finfo(mask.dtype).min)
