"""The oracle for any model: the unpruned one, made not to see the dropped tokens from layer K on.

Shares no code with the rest of the package. Layers that attend get their own masks with the dropped columns hidden:
what a layer may see is taken from the mask that transformers made for it (causal, sliding, chunked, prefix, blocks), so
that only the dropped columns differ. Layers with another memory (linear attention, convolution, state space) are run on
what is kept of each prompt alone, without padding, and their states are put back in its place.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model's decoder: the outermost list of that name in its language model, or in no encoder."""
    found: dict[str, Any] = {name: module for name, module in model.named_modules() if name.endswith("layers")}
    named = [name for name in found if "language_model" in name or "text_model" in name]
    others = [name for name in found if not re.search("vision|visual|audio|tower|encoder", name)]
    return list(found[min(named or others, key=len)])


@contextmanager
def hiding(
    model: Any, layer: int, gone: list[list[int]], *, decode_from: int | None = None, padding: Tensor | None = None
) -> Iterator[None]:
    """Hide positions from layer `layer` on; from `decode_from` on once the prompt is read.

    Parameters
    ----------
    gone : list of list of int
        By row, the positions that are hidden.
    padding : Tensor, optional, (B, L)
        Zero where a prompt is padded: needed where layers have another memory than keys.
    """
    seen = _Seen()

    def rewrite(number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        cache = cache_in(kwargs)
        if number == 0:
            seen.past = cache.get_seq_length() if cache is not None else 0
            seen.queries = _one_stream(model, states).shape[1]
        first = layer if seen.past == 0 or decode_from is None else decode_from
        if number < first or not attends(module):
            return None
        mask = _hidden(model, module, number, cache, kwargs.get("attention_mask"), states, gone, seen)
        return args, {**kwargs, "attention_mask": mask}

    layers = decoder_layers(model)
    handles = [
        each.register_forward_pre_hook(partial(rewrite, number), with_kwargs=True) for number, each in enumerate(layers)
    ]
    apart = {number: each for number, each in enumerate(layers) if number >= layer and not attends(each)}
    for number, each in apart.items():
        object.__setattr__(each, "forward", partial(_on_kept, each.forward, number, gone, padding, seen))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for each in apart.values():
            object.__delattr__(each, "forward")


class _Seen:
    """The forward under way: positions before it, and its tokens."""

    past = queries = 0


def _one_stream(model: Any, states: Tensor) -> Tensor:
    """Of hidden states that may have several streams, those of one, (B, L, D)."""
    if states.ndim == 3:
        return states
    before = hasattr(model.config.get_text_config(), "altup_num_inputs")  # Gemma 3n has them in front of the batch
    return states[0] if before else states[:, :, 0]


def attends(layer: nn.Module) -> bool:
    """Whether a layer has an attention: something that projects queries."""
    return any(name.endswith(("q_proj", "q_b_proj", "query_key_value")) for name, _ in layer.named_modules())


def _hidden(
    model: Any,
    module: nn.Module,
    number: int,
    cache: Any,
    mask: Tensor | None,
    states: Tensor,
    gone: list[list[int]],
    seen: _Seen,
) -> Tensor:
    """A layer's mask, (B, 1, L, S), with columns hidden."""
    states = _one_stream(model, states)
    total, batch = seen.past + seen.queries, states.shape[0]
    if mask is None:
        asking = min(seen.queries, states.shape[1])
        width = keys_of(module, cache, number, seen.past) + seen.queries
        place = torch.arange(total - width, total)
        mask = (place[None] <= torch.arange(total - asking, total)[:, None])[None, None]
    mask = mask.expand(batch, -1, -1, -1).clone()
    start = total - mask.shape[-1]
    blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    copies = batch // len(gone)  # beams
    for row in range(batch):
        columns = [place - start for place in gone[row // copies] if start <= place < total]
        mask[row, :, :, columns] = blocked
    if not mask.is_floating_point() and model.get_decoder().config._attn_implementation == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    return mask


def _on_kept(
    forward: Any,
    number: int,
    gone: list[list[int]],
    padding: Tensor | None,
    seen: _Seen,
    hidden: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """A layer without keys, on what is kept of each row alone."""
    rows, queries = hidden.shape[:2]
    if queries == 1:  # nothing of it is dropped, and the cache holds what it needs
        return forward(hidden, *args, **kwargs)
    cache, copies = cache_in(kwargs), rows // len(gone)
    whole = cache.layers[number] if cache is not None and number < len(cache.layers) else None
    out, memories = hidden.clone(), []
    for row in range(rows):
        stays = torch.ones(queries, dtype=torch.bool)
        if padding is not None:
            stays &= padding[row // copies, seen.past : seen.past + queries].bool()
        stays[[place - seen.past for place in gone[row // copies] if seen.past <= place < seen.past + queries]] = False
        mine = {name: _cut(value, row, stays, rows, queries) for name, value in kwargs.items()}
        memory = None if whole is None else _row(whole, row)
        if whole is not None:
            cache.layers[number] = memory
        done = forward(hidden[row : row + 1, stays], **{**mine, "attention_mask": None})
        out[row, stays] = (done if isinstance(done, Tensor) else done[0])[0]
        memories.append(memory)
    if whole is not None:
        cache.layers[number] = _joined(memories)
    return out


def _cut(value: Any, row: int, stays: Tensor, rows: int, queries: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_cut(part, row, stays, rows, queries) for part in value)
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != queries:
        return value
    return value[row : row + 1, stays] if value.shape[0] == rows else value[:, stays]


STATES = ("conv_states", "recurrent_states")


def _row(memory: Any, row: int) -> Any:
    """One row of what a layer without keys remembers."""
    mine = copy.copy(memory)
    for name, value in vars(memory).items():
        if isinstance(value, dict):
            found = {
                key: each[row : row + 1].clone() if isinstance(each, Tensor) else each for key, each in value.items()
            }
            setattr(mine, name, found)
    return mine


def _joined(memories: list[Any]) -> Any:
    """The memories of all rows in one."""
    whole = copy.copy(memories[0])
    for name in STATES:
        parts = [getattr(memory, name, None) or {} for memory in memories]
        joined = {
            key: torch.cat([part[key] for part in parts]) if isinstance(value, Tensor) else value
            for key, value in parts[0].items()
        }
        if joined:
            setattr(whole, name, joined)
    return whole


def cache_in(arguments: dict[str, Any]) -> Any:
    """The KV cache among a layer's arguments, by whatever name."""
    return next((value for value in arguments.values() if isinstance(value, Cache)), None)


def keys_of(layer: Any, cache: Any, number: int, past: int) -> int:
    """Past keys that an unpruned layer hands to its attention."""
    if cache is None or number >= len(cache.layers):
        return past
    window = getattr(cache.layers[number], "sliding_window", None)
    if window is None and not hasattr(cache.layers[number], "get_seq_length"):  # it reads another layer's keys
        window = getattr(getattr(layer, "self_attn", None), "sliding_window", None) if past else None
    return past if window is None else min(past, window - 1)
