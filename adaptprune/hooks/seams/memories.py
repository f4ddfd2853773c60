"""What each layer of a decoder remembers, and the states of layers without keys, row by row. No models, no hooks."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams.cache import keyless, layers_of, new_cache, width


@dataclass(frozen=True)
class Memory:
    """What a decoder layer remembers.

    Attributes
    ----------
    keys : bool
        Keys and values, one per token.
    states : bool
        States of one size, however long the sequence (linear attention, convolutions). Neither: nothing of its own.
    window, chunk : int or None
        Of its keys it sees the last so many positions, or those of its own chunk of so many; None: all.
    """

    keys: bool = False
    states: bool = False
    window: int | None = None
    chunk: int | None = None


def memories(config: Any) -> list[Memory]:
    """What each decoder layer of a model with this config remembers, as its cache has it.

    Raises
    ------
    AdaptPruneError
        A layer that remembers something else (an index of its keys, or both keys and states).
    """
    text = config.get_text_config()
    layers = layers_of(new_cache(text))
    kinds = list(getattr(text, "layer_types", None) or [""] * len(layers))
    found: list[Memory] = []
    for layer, kind in zip(layers, kinds, strict=False):  # before 5.20, layers that share keys have none here
        if keyless(layer):
            found.append(Memory(states=hasattr(layer, "conv_states")))
        elif type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise AdaptPruneError(
                f"this decoder keeps a {type(layer).__name__} in its cache, which cannot be batched with others: "
                "layers with keys, with windows or chunks of them, or with states alone can."
            )
        elif "chunked" in kind:
            found.append(Memory(keys=True, chunk=width(layer)))
        else:
            found.append(Memory(keys=True, window=width(layer)))
    return found


#: By attribute of a layer without keys, what it remembers: tensors by number, each one row per sequence.
STATES = ("conv_states", "recurrent_states")


def join_states(mine: Any, theirs: Any) -> Any:
    """A layer with the rows of two layers that hold states; the first may be missing. If it fails, both are whole."""
    if mine is None:
        return copy.deepcopy(theirs)
    more = {
        (name, place): torch.cat([getattr(mine, name)[place], states])
        for name in STATES
        for place, states in getattr(theirs, name).items()
        if states is not None
    }
    for (name, place), states in more.items():
        getattr(mine, name)[place] = states
    return mine


def leave_states(layer: Any, row: int) -> None:
    """Drop one row of a layer that holds states; the last one takes its place."""
    for name in STATES:
        held = getattr(layer, name)
        for place, states in held.items():
            if states is not None:
                order = [*range(len(states) - 1)]
                if row < len(order):
                    order[row] = len(states) - 1
                held[place] = states[order]


def states_nbytes(layer: Any) -> int:
    """Bytes of the states of a layer that holds some."""
    return sum(states.nbytes for name in STATES for states in getattr(layer, name).values() if states is not None)
