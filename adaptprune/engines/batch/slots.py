"""The KV cache of a running batch: every row holds a different number of keys, and a different one in every layer.

A row is a request whose prompt was read alone, pruned or not. Rows stand next to each other in one buffer per layer and
start at column 0, so that a new token is written in place at its row's end: joining copies one row, leaving moves the
last row into the gap, and a decode step copies nothing. What lies behind a row's end is masked, layer by layer.

transformers' own continuous batching (`generate_batch`) cannot hold such rows: its paged cache keeps one block table
per attention type, and with it one length for all layers of that type. It also takes token ids only, no images.

Layers without keys hold states of one size, one row each; layers that read the keys of another have nothing here.

Not here: what the tokens are. A row that was pruned is only a row with shorter layers, which know the places of what
they hold where they see a part of the sequence alone (a window, a chunk).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from adaptprune.engines.batch.layer import SlotLayer
from adaptprune.hooks.addons import Memo, moved
from adaptprune.hooks.seams import Parts, attention, calls
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams.memories import join_states, leave_states, memories, states_nbytes
from adaptprune.hooks.seams.parts import text_config
from adaptprune.hooks.seams.rotary import Noted, makers


class Slots(kv.Cache):
    """The cache of one running batch. Install its masks on the decoder with `install_masks`.

    Parameters
    ----------
    config
        The model's config.
    sources : mapping of int to int
        Layers that read the keys of another layer, and which.

    Raises
    ------
    AdaptPruneError
        A decoder with layers that remember something else than keys or states.
    """

    def __init__(self, config: Any, sources: Mapping[int, int]) -> None:
        self._config, self._sources = text_config(config), sources
        self._memories = memories(config)
        super().__init__(layers=self._fresh())
        self.ends: list[int] = []  # of each row, the place of its next token in its sequence
        self._next: Tensor | None = None  # those, as a tensor, in the step under way
        self._masks: dict[Any, Tensor | None] = {}
        self._before: list[list[int]] = []
        self._shifts: list[tuple[int, ...]] = []  # of each row, by layer
        self._moved: dict[tuple[int, ...], Tensor] = {}  # of all rows, and what became of position embeddings
        self._memo: Memo = {}

    def _fresh(self) -> list[Any]:
        layers = kv.layers_of(kv.new_cache(self._config))
        return [
            SlotLayer(memory) if memory.keys else layer for memory, layer in zip(self._memories, layers, strict=False)
        ]

    def __len__(self) -> int:
        """Rows of the batch."""
        return len(self.ends)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        total = 0
        for layer, memory in zip(self.layers, self._memories, strict=True):
            if memory.states:
                total += states_nbytes(layer)
            elif memory.keys:
                keys, values = layer.keys, layer.values  # read once: other threads ask, too
                total += keys.nbytes + values.nbytes if keys is not None and values is not None else 0
        return total

    def join(
        self,
        cache: kv.Cache,
        places: Callable[[int], Tensor],
        bias: Callable[[int], Tensor | None] = lambda index: None,
        shifts: tuple[int, ...] = (),
    ) -> None:
        """Append the one row of a cache in which a prompt was read. If that fails, the other rows are as they were.

        Parameters
        ----------
        places : callable
            Of a layer by index, the places of the keys that it holds in the prompt, (held,).
        bias : callable
            The same of what is added to what attention makes of them.
        shifts : tuple of int
            By how many places each layer's tokens are moved forward, if positions are packed.
        """
        joined: list[int] = []
        try:
            for index, (memory, theirs) in enumerate(zip(self._memories, kv.layers_of(cache), strict=False)):
                if memory.states:
                    self.layers[index] = join_states(self.layers[index] if self.ends else None, theirs)
                elif memory.keys:
                    self.layers[index].join(*kv.filled(theirs), places(index), bias(index))
                joined.append(index)
        except BaseException:  # there was no memory for it, say
            for index in joined:
                self._leave(index, len(self.ends))
            raise
        self.ends.append(kv.seen(cache))
        self._shifts.append(shifts)

    def leave(self, row: int) -> None:
        """Drop one row; the last one takes its place."""
        for index in range(len(self.layers)):
            self._leave(index, row)
        self.ends[row], self._shifts[row] = self.ends[-1], self._shifts[-1]
        self.ends.pop()
        self._shifts.pop()

    def _leave(self, index: int, row: int) -> None:
        if self._memories[index].states:
            leave_states(self.layers[index], row)
        elif self._memories[index].keys:
            self.layers[index].leave(row)

    def clear(self) -> None:
        """Drop all rows and buffers."""
        self.layers, self.ends, self._shifts = self._fresh(), [], []
        self._masks.clear()

    def mask(self, index: int, backend: str, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What layer `index` may see in the step under way, whether its new key is written already or not.

        Returns
        -------
        Tensor or None
            Boolean (rows, 1, 1, S), additive for eager attention and where keys have a bias, (rows, S) for flash
            attention; None: everything.
        """
        source = self._sources.get(index, index)
        if not self._memories[source].keys:
            return None
        layer, lengths = self.layers[source], self._before[source]
        key = (source, device) if layer.partial else (tuple(lengths), device)
        if key not in self._masks:
            self._masks[key] = layer.visible(lengths, self._next_on(device))
        held = self._masks[key]
        if layer.bias is not None:
            bias = pad(layer.bias.to(device, dtype), (0, max(lengths) + 1 - layer.bias.shape[1]))
            shown = bias if held is None else bias.masked_fill(~held, torch.finfo(dtype).min)
            return shown[:, None, None, :]
        if held is None or backend.startswith("flash"):
            return held
        held = held[:, None, None, :]
        if backend == "eager":
            return torch.zeros(held.shape, dtype=dtype, device=device).masked_fill(~held, torch.finfo(dtype).min)
        return held

    def placed(self, index: int, arguments: dict[str, Any], noted: Noted) -> dict[str, Any]:
        """What layer `index` is handed, with the position embeddings that its rows go on with.

        Parameters
        ----------
        noted : Noted
            The position embeddings that were made in the step under way.
        """
        shifts = tuple(row[index] if row else 0 for row in self._shifts)
        if not any(shifts):
            return arguments
        if shifts not in self._moved:
            self._moved[shifts] = torch.tensor(shifts)[:, None]
        return moved(arguments, self._moved[shifts], noted, self._memo)

    def _next_on(self, device: torch.device) -> Tensor:
        if self._next is None or self._next.device != device:
            self._next = torch.tensor(self.ends, device=device)
        return self._next

    def begin_step(self) -> None:
        """Forget the masks of the step before, and remember the lengths for `take_back`."""
        self._masks.clear()
        self._moved.clear()
        self._memo.clear()
        self._next = None
        self._before = [list(layer.lengths) if isinstance(layer, SlotLayer) else [] for layer in self.layers]

    def end_step(self) -> None:
        """Every row has one token more."""
        for layer, lengths in zip(self.layers, self._before, strict=True):
            if isinstance(layer, SlotLayer) and layer.places is not None:
                layer.note(lengths, self._next_on(layer.places.device))
        self.ends = [end + 1 for end in self.ends]

    def take_back(self) -> bool:
        """Undo a step that failed halfway: what some layers have written already lies behind their rows' ends.

        Returns
        -------
        bool
            False if it cannot be undone: states were written over.
        """
        for layer, lengths in zip(self.layers, self._before, strict=True):
            if isinstance(layer, SlotLayer):
                layer.rewind(lengths)
        return not any(memory.states for memory in self._memories)


def install_masks(found: Parts) -> Callable[[], None]:
    """Hand every decoder layer its own mask and positions whenever the model runs on `Slots`.

    Returns the function that undoes it.
    """
    noted = Noted()

    def before(index: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        states, arguments = calls.layer_call(module, args, kwargs)
        cache = kv.cache_in(arguments)
        if not isinstance(cache, Slots):
            return None
        arguments = cache.placed(index, arguments, noted)
        mask = cache.mask(index, attention.backend(found.decoder), states.dtype, states.device)
        return (states,), {**arguments, calls.MASK: mask}

    hooks = [
        layer.register_forward_pre_hook(partial(before, index), with_kwargs=True)
        for index, layer in enumerate(found.layers)
    ]
    # its own methods, so that a copy of the model has a copy of them
    hooks.append(found.decoder.register_forward_pre_hook(noted.clear))
    for maker in makers(found.decoder):
        hooks.append(maker.register_forward_pre_hook(noted.begin, with_kwargs=True))
        hooks.append(maker.register_forward_hook(noted.end))

    def remove() -> None:
        for hook in hooks:
            hook.remove()

    return remove
