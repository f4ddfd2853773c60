"""One row of attention from one layer, with the model's own attention kernel left on.

Only layer K-1's attention module gets a copy of its config that names a registered function. That function works out
the last prompt token's probabilities from the query and key states (after RoPE and norms, whatever the model) and then
calls the implementation that the model was loaded with.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.narrow import take
from adaptprune.hooks.state import Call

NAME = "adaptprune_probe"
#: Attribute of a watched attention module: its own config, and whom to tell. There, so that all go together.
WATCH = "_adaptprune_watch"


class _Original:
    """The attention module as its own implementation knows it: flash attention reads its name from `config`."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        self._module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def install(attention: nn.Module, watch: Callable[..., None]) -> Callable[[], None]:
    """Call ``watch(query, key, attention_mask, scaling, softcap, sliding_window)`` before every attention of a module.

    Returns the function that puts the module back as it was.
    """
    config: Any = attention.config
    _implementation(attention, config)  # fails now rather than in the first forward
    ALL_ATTENTION_FUNCTIONS.register(NAME, _probe)
    changed = copy.copy(config)
    changed._attn_implementation = NAME
    attention.config = changed
    setattr(attention, WATCH, (config, torch.compiler.disable(watch)))

    def remove() -> None:
        attention.config = config
        delattr(attention, WATCH)

    return remove


def _implementation(attention: nn.Module, config: Any) -> Callable[..., Any]:
    name = config._attn_implementation or "eager"
    eager = getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)
    if name == "eager" and eager is None:
        raise AdaptPruneError(
            f"cannot watch the eager attention of {type(attention).__name__}: "
            "load the model with attn_implementation='sdpa'."
        )
    found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    return found


def _probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    config, watch = getattr(module, WATCH)
    watch(query, key, attention_mask, kwargs.get("scaling"), kwargs.get("softcap"), kwargs.get("sliding_window"))
    return _implementation(module, config)(_Original(module, config), query, key, value, attention_mask, **kwargs)


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
