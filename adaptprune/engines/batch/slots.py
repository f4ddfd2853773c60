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

from adaptprune.hooks.seams import Parts, attention, calls
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams.memories import Memory, join_states, leave_states, memories, states_nbytes
from adaptprune.hooks.seams.parts import text_config

#: Columns are added to a buffer in steps of this many, and by at least a quarter, so that growing stays rare.
COLUMNS = 64


class SlotLayer(kv.CacheLayerMixin):
    """One layer's keys and values of all rows, (rows, heads, columns, width), and how many of them each row holds."""

    is_sliding = False
    keys: Tensor | None
    values: Tensor | None

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self.lengths: list[int] = []
        self.places: Tensor | None = None  # (rows, columns) of the keys in their sequences; None if all is seen anyway
        self._ends: Tensor | None = None  # lengths as a tensor, until they change

    @property
    def partial(self) -> bool:
        """Whether its tokens see a part of the sequence alone."""
        return self.memory.window is not None or self.memory.chunk is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(rows, heads, 0, width)
        self.values = value_states.new_zeros(rows, heads, 0, value_states.shape[-1])
        self.is_initialized = True

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for `rows` rows of `columns` keys."""
        assert self.keys is not None
        assert self.values is not None
        old_rows, _, old_columns, _ = self.keys.shape
        if rows <= old_rows and columns <= old_columns:
            return
        if rows > old_rows:
            rows = max(rows, 2 * len(self.lengths))
        if columns > old_columns:
            columns = -(-max(columns, old_columns * 5 // 4) // COLUMNS) * COLUMNS
        rows, columns = max(rows, old_rows), max(columns, old_columns)
        places = self.places
        if self.partial:
            places = torch.zeros(rows, columns, dtype=torch.int64, device=self.keys.device)
            if self.places is not None:
                places[:old_rows, :old_columns] = self.places
        # all or none: there may be no memory for one of them
        self.keys, self.values, self.places = (
            *(_grown(old, rows, columns, len(self.lengths)) for old in (self.keys, self.values)),
            places,
        )

    def join(self, keys: Tensor, values: Tensor, places: Tensor) -> None:
        """Append one row, (1, heads, length, width), with the places of its keys in its sequence, (length,)."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        row, length = len(self.lengths), keys.shape[-2]
        self.reserve(row + 1, length + 1)
        assert self.keys is not None
        assert self.values is not None
        self.keys[row, :, :length] = keys[0]
        self.values[row, :, :length] = values[0]
        if self.places is not None:
            self.places[row, :length] = places
        self.lengths.append(length)
        self._ends = None

    def leave(self, row: int) -> None:
        """Drop one row; the last one takes its place."""
        assert self.keys is not None
        assert self.values is not None
        last, length = len(self.lengths) - 1, self.lengths[-1]
        if row != last:
            self.keys[row, :, :length] = self.keys[last, :, :length]
            self.values[row, :, :length] = self.values[last, :, :length]
            if self.places is not None:
                self.places[row, :length] = self.places[last, :length]
            self.lengths[row] = length
        self.lengths.pop()
        self._ends = None
        if not self.lengths:  # an idle server holds no buffer
            self.keys, self.values, self.places, self.is_initialized = None, None, None, False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one new key per row, (rows, heads, 1, width); returns all, (rows, heads, longest, width)."""
        rows, longest = len(self.lengths), max(self.lengths) + 1
        self.reserve(rows, longest)
        assert self.keys is not None
        assert self.values is not None
        if self._ends is None:
            self._ends = torch.tensor(self.lengths, device=key_states.device)
        lines = torch.arange(rows, device=key_states.device)
        self.keys[lines, :, self._ends] = key_states[:, :, 0]
        self.values[lines, :, self._ends] = value_states[:, :, 0]
        self.lengths = [length + 1 for length in self.lengths]
        self._ends = self._ends + 1
        return self.keys[:rows, :, :longest], self.values[:rows, :, :longest]

    def visible(self, lengths: list[int], ends: Tensor) -> Tensor | None:
        """What the next token of each row may see, (rows, longest + 1); None: everything.

        Parameters
        ----------
        lengths : list of int
            How many keys each row holds before that token's own.
        ends : Tensor, (rows,)
            That token's place in each sequence.
        """
        longest = max(lengths)
        if not self.partial and min(lengths) == longest:
            return None
        counts, end = torch.tensor(lengths, device=ends.device)[:, None], ends[:, None]
        held = torch.arange(longest + 1, device=ends.device) <= counts
        if self.places is None:
            return held
        places = torch.nn.functional.pad(self.places[: len(lengths), :longest], (0, 1))
        places = places.scatter(1, counts, end)  # its own, which may have been written already
        window, chunk = self.memory.window, self.memory.chunk
        if window is not None:
            held &= places > end - window
        if chunk is not None:
            held &= places // chunk == end // chunk
        return None if bool(held.all()) else held

    def note(self, lengths: list[int], ends: Tensor) -> None:
        """Remember the places of the keys that a step adds, behind `lengths` of each row."""
        if self.places is not None:
            self.reserve(len(lengths), max(lengths) + 1)
            self.places[torch.arange(len(lengths)), torch.tensor(lengths)] = ends

    def rewind(self, lengths: list[int]) -> None:
        """Set how many keys each row holds."""
        self.lengths, self._ends = lengths, None

    def get_seq_length(self) -> int:
        return max(self.lengths, default=0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


def _grown(old: Tensor, rows: int, columns: int, used: int) -> Tensor:
    # zeros, not empty: what is masked is still multiplied by 0, and 0 * nan is nan
    new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
    new[:used, :, : old.shape[2]] = old[:used]
    return new


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

    def join(self, cache: kv.Cache, places: Callable[[int], Tensor]) -> None:
        """Append the one row of a cache in which a prompt was read. If that fails, the other rows are as they were.

        Parameters
        ----------
        places : callable
            Of a layer by index, the places of the keys that it holds in the prompt, (held,).
        """
        joined: list[int] = []
        try:
            for index, (memory, theirs) in enumerate(zip(self._memories, kv.layers_of(cache), strict=False)):
                if memory.states:
                    self.layers[index] = join_states(self.layers[index] if self.ends else None, theirs)
                elif memory.keys:
                    self.layers[index].join(*kv.filled(theirs), places(index))
                joined.append(index)
        except BaseException:  # there was no memory for it, say
            for index in joined:
                self._leave(index, len(self.ends))
            raise
        self.ends.append(kv.seen(cache))

    def leave(self, row: int) -> None:
        """Drop one row; the last one takes its place."""
        for index in range(len(self.layers)):
            self._leave(index, row)
        self.ends[row] = self.ends[-1]
        self.ends.pop()

    def _leave(self, index: int, row: int) -> None:
        if self._memories[index].states:
            leave_states(self.layers[index], row)
        elif self._memories[index].keys:
            self.layers[index].leave(row)

    def clear(self) -> None:
        """Drop all rows and buffers."""
        self.layers, self.ends = self._fresh(), []
        self._masks.clear()

    def mask(self, index: int, backend: str, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What layer `index` may see in the step under way, whether its new key is written already or not.

        Returns
        -------
        Tensor or None
            Boolean (rows, 1, 1, S), additive for eager attention, (rows, S) for flash attention; None: everything.
        """
        source = self._sources.get(index, index)
        if not self._memories[source].keys:
            return None
        layer, lengths = self.layers[source], self._before[source]
        key = (source, device) if layer.partial else (tuple(lengths), device)
        if key not in self._masks:
            self._masks[key] = layer.visible(lengths, self._next_on(device))
        held = self._masks[key]
        if held is None or backend.startswith("flash"):
            return held
        held = held[:, None, None, :]
        if backend == "eager":
            return torch.zeros(held.shape, dtype=dtype, device=device).masked_fill(~held, torch.finfo(dtype).min)
        return held

    def _next_on(self, device: torch.device) -> Tensor:
        if self._next is None or self._next.device != device:
            self._next = torch.tensor(self.ends, device=device)
        return self._next

    def begin_step(self) -> None:
        """Forget the masks of the step before, and remember the lengths for `take_back`."""
        self._masks.clear()
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
    """Hand every decoder layer its own mask whenever the model runs on `Slots`. Returns the function that undoes it."""

    def before(index: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        states, arguments = calls.layer_call(module, args, kwargs)
        cache = kv.cache_in(arguments)
        if not isinstance(cache, Slots):
            return None
        mask = cache.mask(index, attention.backend(found.decoder), states.dtype, states.device)
        return (states,), {**arguments, calls.MASK: mask}

    hooks = [
        layer.register_forward_pre_hook(partial(before, index), with_kwargs=True)
        for index, layer in enumerate(found.layers)
    ]

    def remove() -> None:
        for hook in hooks:
            hook.remove()

    return remove
