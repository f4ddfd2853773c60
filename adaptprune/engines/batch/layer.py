"""One layer of a running batch's KV cache: every row holds a different number of keys.

Rows start at column 0, so that a new token is written in place at its row's end; what lies behind that is masked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams.memories import Memory

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
        self.bias: Tensor | None = None  # (rows, most) of the keys that rows came with; None: of no row
        self._biases: list[Tensor | None] = []
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

    def join(self, keys: Tensor, values: Tensor, places: Tensor, bias: Tensor | None = None) -> None:
        """Append one row, (1, heads, length, width), with the places of its keys in its sequence, (length,).

        `bias`, (length,), is added to what attention makes of them.
        """
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
        self._weigh([*self._biases, bias])
        self.lengths.append(length)
        self._ends = None

    def _weigh(self, biases: list[Tensor | None]) -> None:
        """Set what is added for the keys that each row came with."""
        lines = [torch.zeros(0) if bias is None else bias for bias in biases]
        device = next((bias.device for bias in biases if bias is not None), None)
        self.bias = (
            None if device is None else pad_sequence([line.to(device) for line in lines], batch_first=True)
        )  # before the list: there may be no memory for it
        self._biases = biases

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
        self._biases[row] = self._biases[last]
        self._biases.pop()
        if self.bias is not None:
            self.bias[row] = self.bias[last]
            self.bias = self.bias[:last] if any(bias is not None for bias in self._biases) else None
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
