"""The mask oracle for any family: the unpruned model, with its own masks made to hide the dropped tokens.

Shares no code with the package. What a layer may see is taken from the mask that transformers made for it (causal,
sliding, prefix, blocks), so that only the dropped columns differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    base: Any = model.model
    return list((base.text_model if hasattr(base, "text_model") else base.language_model).layers)


@contextmanager
def hiding(model: Any, layer: int, gone: list[list[int]], *, decode_from: int | None = None) -> Iterator[None]:
    """Hide positions from layer `layer` on; from `decode_from` on once the prompt is read."""

    def rewrite(number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        rows, queries = states.shape[:2]
        cache = cache_in(kwargs)
        past = cache.get_seq_length(number) if cache is not None and number < len(cache.layers) else 0
        first = layer if past == 0 or decode_from is None else decode_from
        if number < first:
            return None
        total, mask = past + queries, kwargs.get("attention_mask")
        if mask is None:
            width = keys_of(cache, number, past) + queries
            place = torch.arange(total - width, total)
            mask = (place[None] <= torch.arange(past, total)[:, None])[None, None]
        mask = mask.expand(rows, -1, -1, -1).clone()
        start = total - mask.shape[-1]
        blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        copies = rows // len(gone)  # beams
        for row in range(rows):
            columns = [place - start for place in gone[row // copies] if start <= place < total]
            mask[row, :, :, columns] = blocked
        if not mask.is_floating_point() and model.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return args, {**kwargs, "attention_mask": mask}

    handles = [
        each.register_forward_pre_hook(partial(rewrite, number), with_kwargs=True)
        for number, each in enumerate(decoder_layers(model))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cache_in(arguments: dict[str, Any]) -> Any:
    """The KV cache among a layer's arguments, by whatever name."""
    return next((value for value in arguments.values() if isinstance(value, Cache)), None)


def keys_of(cache: Any, number: int, past: int) -> int:
    """Past keys that an unpruned layer hands to its attention."""
    if cache is None or number >= len(cache.layers):
        return past
    window = getattr(cache.layers[number], "sliding_window", None)
    return past if window is None else min(past, window - 1)
