"""What goes with kept tokens: by how many places packed positions move them forward, and the bias on their keys.

Index arithmetic over a `Call`, as in `adaptprune.hooks.state`, which calls it. Tensors only, no models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from adaptprune.errors import AdaptPruneError

if TYPE_CHECKING:
    from adaptprune.hooks.state import Call, View


def shifted(call: Call, stage: int, kept: list[Tensor]) -> Tensor | None:
    """Note by how many places a stage moves each incoming token forward; returns that of all later ones, (B, 1).

    A token that leaves gives free what lies between its position and the next token's. None if positions stay.
    """
    if not call.state.packed:
        return None
    assert call.layouts is not None
    positions = call.noted.positions
    if not isinstance(positions, Tensor) or positions.ndim != 2:
        made = "none" if positions is None else f"those of position ids of shape {tuple(positions.shape)}"
        raise AdaptPruneError(
            f"positions='packed' needs rotary embeddings of one position per token, and this decoder makes {made}: use "
            "positions='original'."
        )
    steps = pad(positions.to(call.device).diff(dim=1).clamp_min(0), (0, 1), value=1)
    gone = torch.zeros(call.batch, call.length, dtype=torch.int64, device=call.device)
    for row, (layout, indices) in enumerate(zip(call.layouts, kept, strict=True)):
        gone[row, layout.positions] = 1
        gone[row, layout.positions[indices]] = 0
    whole = (gone * steps).cumsum(dim=1)  # where a token is gone itself, it does not matter
    before = call.state.views.get(stage)
    if before is not None and before.shift is not None:
        whole = whole + before.shift
    call.shifts[stage] = whole
    return whole[:, -1:]


def shift_at(call: Call, layer: int) -> Tensor | None:
    """By how many places a layer's tokens are moved forward, (B, L) or (B, 1); None: not at all."""
    kept = [stage for stage in call.shifts if stage <= layer]
    if kept:
        return call.shifts[max(kept)]
    view = call.view_at(layer)
    return None if view is None else view.shift


def weigh(call: Call, row: int, tokens: Tensor, bias: Tensor) -> None:
    """Set what is added for the keys of some tokens, (n,) indices into a row's layout."""
    assert call.layouts is not None
    if not call.biases:
        call.biases = [torch.zeros(layout.positions.numel(), device=call.device) for layout in call.layouts]
    call.biases[row][tokens] = bias.to(call.device, torch.float32)


def bias(call: Call, stage: int, rows: Tensor, kept: list[Tensor]) -> Tensor | None:
    """What is added for every key that a stage holds: of earlier forwards, and of the incoming `rows`, (B, S).

    None if nothing is added to any.
    """
    before = call.state.views.get(stage)
    past = None if before is None else before.bias
    if not call.biases and past is None:
        return None
    new = torch.zeros(call.batch, call.length, device=call.device)
    for row, (layout, indices, values) in enumerate(zip(call.layouts or (), kept, call.biases, strict=False)):
        new[row, layout.positions[indices]] = values[indices]
    new = new.gather(1, rows.clamp_min(0)).masked_fill(rows < 0, 0)
    held = call.state.columns(stage, call.past, call.batch, call.device).shape[1]
    past = torch.zeros(call.batch, 0, device=call.device) if past is None else past
    return torch.cat([pad(past, (0, held - past.shape[1])), new], dim=1)


def bias_at(call: Call, layer: int) -> Tensor | None:
    """What is added for every key that a layer is handed, (B, S); None: nothing."""
    view = call.view_at(layer)
    if view is None or view.bias is None:
        return None
    return bias_of(view, call.total)[:, -call.columns_at(layer).shape[1] :]


def bias_of(view: View, total: int) -> Tensor:
    """What is added for every key of a view once the sequence is `total` long, (B, S)."""
    assert view.bias is not None
    return pad(view.bias, (0, total - view.covered))
