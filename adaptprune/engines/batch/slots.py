"""The KV cache of a running batch: every row holds a different number of keys, and a different one in every layer.

A row is a request whose prompt was read alone, pruned or not. Rows stand next to each other in one buffer per layer and
start at column 0, so that a new token is written in place at its row's end: joining copies one row, leaving moves the
last row into the gap, and a decode step copies nothing. What lies behind a row's end is masked, layer by layer.

transformers' own continuous batching (`generate_batch`) cannot hold such rows: its paged cache keeps one block table
per attention type, and with it one length for all layers of that type. It also takes token ids only, no images.

Not here: what the tokens are. A row that was pruned is only a row with shorter layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.hooks.seams import Parts, attention, calls
from adaptprune.hooks.seams import cache as kv

#: Columns are added to a buffer in steps of this many, and by at least a quarter, so that growing stays rare.
COLUMNS = 64


class SlotLayer(kv.CacheLayerMixin):
    """One layer's keys and values of all rows, (rows, heads, columns, width), and how many of them each row holds."""

    is_sliding = False
    keys: Tensor | None
    values: Tensor | None

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        self.lengths: list[int] = []
        self._places: Tensor | None = None  # lengths as a tensor, until they change

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
        self.keys, self.values = (_grown(old, rows, columns, len(self.lengths)) for old in (self.keys, self.values))

    def join(self, keys: Tensor, values: Tensor) -> None:
        """Append one row, (1, heads, length, width)."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        row, length = len(self.lengths), keys.shape[-2]
        self.reserve(row + 1, length + 1)
        assert self.keys is not None
        assert self.values is not None
        self.keys[row, :, :length] = keys[0]
        self.values[row, :, :length] = values[0]
        self.lengths.append(length)
        self._places = None

    def leave(self, row: int) -> None:
        """Drop one row; the last one takes its place."""
        assert self.keys is not None
        assert self.values is not None
        last, length = len(self.lengths) - 1, self.lengths[-1]
        if row != last:
            self.keys[row, :, :length] = self.keys[last, :, :length]
            self.values[row, :, :length] = self.values[last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()
        self._places = None
        if not self.lengths:  # an idle server holds no buffer
            self.keys, self.values, self.is_initialized = None, None, False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one new key per row, (rows, heads, 1, width); returns all, (rows, heads, longest, width)."""
        rows, longest = len(self.lengths), max(self.lengths) + 1
        self.reserve(rows, longest)
        assert self.keys is not None
        assert self.values is not None
        if self._places is None:
            self._places = torch.tensor(self.lengths, device=key_states.device)
        lines = torch.arange(rows, device=key_states.device)
        self.keys[lines, :, self._places] = key_states[:, :, 0]
        self.values[lines, :, self._places] = value_states[:, :, 0]
        self.lengths = [length + 1 for length in self.lengths]
        self._places = self._places + 1
        return self.keys[:rows, :, :longest], self.values[:rows, :, :longest]

    def rewind(self, lengths: list[int]) -> None:
        """Set how many keys each row holds."""
        self.lengths, self._places = lengths, None

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
        The model's config; its decoder may mix full and sliding-window layers.

    Raises
    ------
    AdaptPruneError
        A decoder with layers that are neither (recurrent ones, or ones that share another layer's cache).
    """

    def __init__(self, config: Any) -> None:
        self.windows = kv.windows(config)
        super().__init__(layers=[SlotLayer(window) for window in self.windows])
        self._masks: dict[Any, Tensor | None] = {}
        self._before: list[list[int]] = []

    def __len__(self) -> int:
        """Rows of the batch."""
        return len(self.layers[0].lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        pairs = [(layer.keys, layer.values) for layer in self.layers]  # read once: other threads ask, too
        return sum(keys.nbytes + values.nbytes for keys, values in pairs if keys is not None and values is not None)

    def join(self, cache: kv.Cache) -> None:
        """Append the one row of a cache in which a prompt was read."""
        for mine, theirs in zip(self.layers, kv.layers_of(cache), strict=True):
            mine.join(*kv.filled(theirs))

    def leave(self, row: int) -> None:
        """Drop one row; the last one takes its place."""
        for layer in self.layers:
            layer.leave(row)

    def clear(self) -> None:
        """Drop all rows and buffers."""
        self.layers = [SlotLayer(window) for window in self.windows]
        self._masks.clear()

    def mask(self, index: int, backend: str, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What layer `index` may see in the step under way, before it has written its new key.

        Returns
        -------
        Tensor or None
            Boolean (rows, 1, 1, S), additive for eager attention, (rows, S) for flash attention; None: everything.
        """
        layer: SlotLayer = self.layers[index]
        key = (tuple(layer.lengths), layer.window, device)
        if key not in self._masks:
            self._masks[key] = _visible(layer.lengths, layer.window, device)
        held = self._masks[key]
        if held is None or backend.startswith("flash"):
            return held
        held = held[:, None, None, :]
        if backend == "eager":
            return torch.zeros(held.shape, dtype=dtype, device=device).masked_fill(~held, torch.finfo(dtype).min)
        return held

    def begin_step(self) -> None:
        """Forget the masks of the step before, and remember the lengths for `take_back`."""
        self._masks.clear()
        self._before = [list(layer.lengths) for layer in self.layers]

    def take_back(self) -> None:
        """Undo a step that failed halfway: what some layers have written already lies behind their rows' ends."""
        for layer, lengths in zip(self.layers, self._before, strict=True):
            layer.rewind(lengths)


def _visible(lengths: list[int], window: int | None, device: torch.device) -> Tensor | None:
    if min(lengths) == max(lengths) and (window is None or lengths[0] < window):
        return None
    columns, ends = torch.arange(max(lengths) + 1, device=device), torch.tensor(lengths, device=device)[:, None]
    held = columns <= ends
    # a sliding window counts the token itself; rows that were pruned never get this long (see Engine)
    return held if window is None else held & (columns > ends - window)


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
