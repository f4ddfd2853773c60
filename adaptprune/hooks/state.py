"""What was dropped, per cache and per forward: index arithmetic over the unpruned sequence. Tensors only, no models.

A *position* is a place in the unpruned sequence (padding counted), over all turns of a conversation. A *stage* is the
number of a decoder layer before which tokens leave. A *view* lists the positions held by the layers from a stage on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaptprune.errors import AdaptPruneError
from adaptprune.families import Layout
from adaptprune.hooks import marks
from adaptprune.hooks.seams.cache import visible, window
from adaptprune.hooks.seams.rotary import Noted

#: The stage of the layers before every stage.
BELOW = -1
#: The attribute of a KV cache that holds its PruneState, so that it is copied and dropped together with the cache.
STATE = "_adaptprune_state"


@dataclass(frozen=True)
class View:
    """Positions held by the layers from one stage on.

    Attributes
    ----------
    index : Tensor, (B, S), int64
        Positions in cache order; -1 is padding, which evens out rows that keep different numbers of tokens.
    covered : int
        `index` speaks of the positions below this; all later ones are held.
    shift : Tensor or None, (B, 1), int64
        By how many places later tokens are moved forward, if positions are packed.
    bias : Tensor or None, (B, S)
        What is added to what attention makes of each key; nothing to later ones.
    """

    index: Tensor
    covered: int
    shift: Tensor | None = None
    bias: Tensor | None = None

    def columns(self, total: int) -> Tensor:
        """Positions of everything held once the sequence is `total` long: (B, S + total - covered)."""
        tail = torch.arange(self.covered, total, device=self.index.device)
        return torch.cat([self.index, tail.expand(self.index.shape[0], -1)], dim=1)

    def held(self, total: int) -> int:
        """How many places everything held takes once the sequence is `total` long."""
        return self.index.shape[1] + total - self.covered

    def cut(self, total: int) -> View:
        """The view of a sequence cropped to `total`; an error if that took away anything but the tokens after it."""
        cropped = self.covered - total
        tail = torch.arange(total, self.covered, device=self.index.device)
        if cropped >= self.index.shape[1] or not bool((self.index[:, -cropped:] == tail).all()):
            raise AdaptPruneError(
                "the cache was cropped into a part that was pruned, where its layers hold different tokens: "
                "crop only what came after the images, or read the prompt again into a new cache."
            )
        bias = None if self.bias is None else self.bias[:, :-cropped]
        return View(self.index[:, :-cropped], total, self.shift, bias)

    def move(self, rows: Tensor) -> View:
        """The view of a batch whose row i was row ``rows[i]``."""
        shift, bias = (None if part is None else part[rows.to(part.device)] for part in (self.shift, self.bias))
        return View(self.index[rows.to(self.index.device)], self.covered, shift, bias)


@dataclass
class History:
    """What choosing anew at a later turn needs of the forwards before it, in positions from 0.

    Attributes
    ----------
    chunks : list of (int, tuple of Tensor)
        Of each forward, its first position; hidden states before the first stage (B, L, D), position embeddings
        (cos, sin), tokens second, and, if the method compares those, what the key projection of the layer below the
        first stage put out (B, L, Dk). Joined only when they are needed.
    layouts : list of Layout
        All visual tokens so far, one per row of the batch.
    """

    chunks: list[tuple[int, tuple[Tensor, ...]]]
    layouts: list[Layout]

    @property
    def length(self) -> int:
        """Positions that are remembered."""
        return self.chunks[-1][0] + self.chunks[-1][1][0].shape[1] if self.chunks else 0

    def add(self, past: int, parts: tuple[Tensor, ...]) -> None:
        """Remember a forward that begins at position `past`; what was cropped off since is forgotten."""
        while self.chunks and self.chunks[-1][0] >= past:
            self.chunks.pop()
        if self.length > past:
            start, last = self.chunks.pop()
            self.chunks.append((start, tuple(part[:, : past - start] for part in last)))
        self.chunks.append((past, parts))

    def move(self, rows: Tensor) -> None:
        """Let row i be what row ``rows[i]`` was."""
        self.layouts = [self.layouts[row] for row in rows.tolist()]
        self.chunks = [
            (start, tuple(part if part.shape[0] == 1 else part[rows.to(part.device)] for part in parts))
            for start, parts in self.chunks
        ]

    def joined(self) -> tuple[Tensor, ...]:
        """Everything in one: hidden states, cos, sin, and keys if there are any."""
        whole = []
        for parts in zip(*(parts for _, parts in self.chunks), strict=True):
            rows = max(part.shape[0] for part in parts)
            whole.append(torch.cat([part.expand(rows, *part.shape[1:]) for part in parts], dim=1))
        self.chunks = [(0, tuple(whole))]
        return tuple(whole)


@dataclass
class PruneState:
    """Belongs to one KV cache: the views of its layers, by stage. A stage without a view holds everything."""

    stages: tuple[int, ...]
    views: dict[int, View] = field(default_factory=dict)
    history: History | None = None
    packed: bool = False

    def move(self, rows: Tensor) -> None:
        """Let row i be what row ``rows[i]`` was, as the cache's rows were moved."""
        for stage, view in self.views.items():
            self.views[stage] = view.move(rows)
        if self.history is not None:
            self.history.move(rows)

    def settle(self, total: int) -> None:
        """Cut the views if the cache was cropped meanwhile (assisted decoding takes back rejected tokens)."""
        for stage, view in self.views.items():
            if total < view.covered:
                self.views[stage] = view.cut(total)

    def columns(self, stage: int, total: int, batch: int, device: torch.device) -> Tensor:
        """Positions that the layers from `stage` on hold, (B, S)."""
        view = self.views.get(stage)
        if view is None:
            return torch.arange(total, device=device).expand(batch, -1)
        return view.columns(total)


@dataclass
class Call:
    """One forward of the decoder.

    Attributes
    ----------
    past, length : int
        Positions before this forward, and the number of tokens handed to it.
    layouts : list of Layout or None
        Visual tokens among them, one per row of the batch; None if there is none to choose from.
    alive : list of Tensor
        Per row, indices into its layout of the visual tokens that no stage has dropped.
    rows : dict of int to Tensor, (B, S)
        Per stage that dropped something: which of the incoming tokens it kept (-1: padding).
    seen : dict of (str, int) to anything
        By cue and layer, what was captured (`adaptprune.hooks.cues` knows its form).
    memos : dict of (int, int) to dict
        By row of the batch and budget, what the rule keeps from stage to stage.
    asked : dict of int to int
        By row of the batch, how many visual tokens were to be kept.
    stayed : dict of int to list of int
        Per stage, how many visual tokens of each row it left.
    scores : dict of int to list of (Tensor, Tensor)
        By row, if they are wanted: indices into its layout, and how the rule ranked those before its first stage.
    merged : dict of int to list of (int, Tensor, Tensor)
        Per stage, hidden states that kept tokens go on with: batch row, incoming tokens (M,), states (M, D).
    prompt : int or None
        Positions of the prompt that `generate()` was given, if it runs: tokens behind it are guesses of a draft.
    keyless : frozenset of int
        Layers that hold no keys: they have another memory, or none.
    sources : mapping of int to int
        Layers that read the keys of another layer, and which.
    layers : int
        How many decoder layers were seen to run.
    unseen : dict of int to int
        Per stage, how many visual tokens were ranked by the attention of a layer whose window they lay outside of.
    wanted : int
        For how many of its last tokens the decoder is asked; 0: for all.
    tail : int or None
        How many of the last tokens go on, if the decoder has cut off all others (Gemma 4 does so before the layers
        that make no keys).
    anew : int or None
        Where this forward's own tokens begin, if the whole conversation goes through the layers from the first stage
        on, so that old tokens are chosen anew.
    rotary : tuple of Tensor or None, (B or 1, T, d)
        Then: position embeddings of the whole conversation.
    first_rotary : tuple of Tensor or None
        Those that the first of these layers was handed, if its states are to be remembered.
    noted : Noted
        The position embeddings that the decoder has made, if positions are packed.
    shifts : dict of int to Tensor, (B, L)
        Then: per stage, by how many places each incoming token is moved forward.
    packed : dict of (int, int) to (object, Tensor, object)
        By their identities, what was handed to layers and the shift, and what became of it.
    biases : list of Tensor, (N,)
        Per row, what is added for each token of its layout; nothing is added if empty.
    """

    state: PruneState
    past: int
    length: int
    batch: int
    device: torch.device
    layouts: list[Layout] | None = None
    token_mask: Tensor | None = None
    cache: Any = None
    prompt: int | None = None
    alive: list[Tensor] = field(default_factory=list)
    rows: dict[int, Tensor] = field(default_factory=dict)
    seen: dict[tuple[str, int], Any] = field(default_factory=dict)
    memos: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    asked: dict[int, int] = field(default_factory=dict)
    stayed: dict[int, list[int]] = field(default_factory=dict)
    scores: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    merged: dict[int, list[tuple[int, Tensor, Tensor]]] = field(default_factory=dict)
    narrowed: dict[tuple[Any, ...], tuple[Any, Any]] = field(default_factory=dict)
    selection_seconds: float = 0.0
    unseen: dict[int, int] = field(default_factory=dict)
    keyless: frozenset[int] = frozenset()
    sources: Mapping[int, int] = field(default_factory=dict)
    layers: int = 0
    wanted: int = 0
    tail: int | None = None
    held: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    anew: int | None = None
    rotary: tuple[Tensor, ...] | None = None
    first_rotary: tuple[Tensor, ...] | None = None
    noted: Noted = field(default_factory=Noted)
    shifts: dict[int, Tensor] = field(default_factory=dict)
    packed: dict[tuple[int, int], tuple[Any, Tensor, Any]] = field(default_factory=dict)
    biases: list[Tensor] = field(default_factory=list)
    _instructions: list[Tensor] | None = None

    def __post_init__(self) -> None:
        self.consider(self.layouts)

    def consider(self, layouts: list[Layout] | None) -> None:
        """Set the visual tokens to choose from."""
        self.layouts, self._instructions = layouts, None
        self.held.clear()
        self.biases = []
        self.alive = [torch.arange(layout.positions.numel(), device=self.device) for layout in layouts or ()]

    @property
    def total(self) -> int:
        """Positions up to and with this forward."""
        return self.past + self.length

    def stage_at(self, layer: int) -> int:
        """The last stage at or before a layer; BELOW if there is none."""
        return max((stage for stage in self.state.stages if stage <= layer), default=BELOW)

    def view_at(self, layer: int) -> View | None:
        """What a layer holds; None if that is everything."""
        return self.state.views.get(self.stage_at(layer))

    def rows_at(self, layer: int) -> Tensor | None:
        """Which incoming tokens layer `layer` is handed (None: all of them)."""
        rows = self._kept_at(layer)
        if self.tail is None:
            return rows
        return (self.all_rows() if rows is None else rows)[:, -self.tail :]

    def cut_to(self, layer: int, count: int) -> None:
        """Note that the decoder hands on the last `count` tokens alone, from a layer on.

        Raises
        ------
        AdaptPruneError
            Tokens have left among those, so that they are not the ones that the decoder has in mind.
        """
        self.tail = None
        rows = self._kept_at(layer)
        if rows is not None and (
            rows.shape[1] < count or not bool((rows[:, -count:] == self.all_rows()[:, -count:]).all())
        ):
            raise AdaptPruneError(
                f"logits_to_keep={count} reaches back to visual tokens that were dropped: ask for those of the last "
                "token (1), or for all (0)."
            )
        self.tail = count

    def all_rows(self) -> Tensor:
        """Every incoming token, (B, length)."""
        return torch.arange(self.length, device=self.device).expand(self.batch, -1)

    def _kept_at(self, layer: int) -> Tensor | None:
        kept = [self.rows[stage] for stage in sorted(self.rows) if stage <= layer]
        return kept[-1] if kept else None

    def incoming(self, layer: int) -> int:
        """How many tokens layer `layer` is handed."""
        rows = self.rows_at(layer)
        return self.length if rows is None else rows.shape[1]

    def window_at(self, layer: int) -> int | None:
        """The sliding window of the keys that a layer reads, in positions; None if it sees everything."""
        return window(self.cache, self.sources.get(layer, layer))

    def columns_at(self, layer: int) -> Tensor:
        """Positions of the keys that layer `layer` is handed, this forward's included, (B, S).

        Layers of one stage and window are handed keys of the same positions. They are looked at before the first of
        them has run: layers that share keys are handed what the source was, when its cache holds the new ones already.
        """
        kind = self.stage_at(layer), self.window_at(layer)
        if kind not in self.held:
            columns = self.state.columns(kind[0], self.total, self.batch, self.device)
            rows = self._kept_at(layer)
            source = self.sources.get(layer, layer)
            count = visible(self.cache, source, self.length if rows is None else rows.shape[1])
            self.held[kind] = columns if count is None else columns[:, -count:]
        return self.held[kind]

    @property
    def reads_prompt(self) -> bool:
        """Whether this forward reads a prompt, and not what was generated after it."""
        return self.length > 1 if self.prompt is None else self.past < self.prompt

    @property
    def chooses(self) -> bool:
        """Whether there are visual tokens to choose from."""
        history = self.state.history
        return self.layouts is not None or (history is not None and self.past > 0 and self.reads_prompt)

    def instructions(self) -> list[Tensor]:
        """Of each row, the incoming tokens behind its last visual one, without padding; at least its last, (T,)."""
        if self._instructions is None:
            self._instructions = [self._instruction(row, int(last)) for row, last in enumerate(self.last_row())]
        return self._instructions

    def _instruction(self, row: int, last: int) -> Tensor:
        visual = self.layouts[row].positions if self.layouts else None
        first = int(visual.max()) + 1 if visual is not None and visual.numel() else 0
        words = torch.arange(min(first, last), last + 1, device=self.device)
        if self.token_mask is not None:
            words = words[self.token_mask[row, self.past :].to(self.device)[words] > 0]
        return words

    def last_row(self) -> Tensor:
        """For each sample, which incoming token is the prompt's last one that is not padding, (B,)."""
        end = self.total if self.prompt is None or not self.reads_prompt else min(self.total, self.prompt)
        last = torch.full((self.batch,), end - self.past - 1, device=self.device)
        if self.token_mask is None:
            return last
        new = self.token_mask[:, self.token_mask.shape[1] - self.length :][:, : end - self.past].to(self.device) > 0
        return last - new.flip(1).int().argmax(dim=1)

    def _after_padding(self) -> Tensor:
        """Incoming tokens that are not padding on the left, (B, length); that padding leaves with the visual tokens."""
        if self.token_mask is None:
            return torch.ones(self.batch, self.length, dtype=torch.bool, device=self.device)
        begun = self.token_mask.to(self.device).cumsum(dim=1) > 0
        begun[:, -1] = True  # a row of nothing but padding keeps its last place
        return begun[:, -self.length :]

    def keep(self, stage: int, kept: list[Tensor]) -> None:
        """Let a stage drop all visual tokens but `kept` (per sample, indices into its layout)."""
        assert self.layouts is not None
        lines = []
        real = self._after_padding()
        for row, (layout, indices) in enumerate(zip(self.layouts, kept, strict=True)):
            stays = real[row].clone()
            stays[layout.positions] = False
            stays[layout.positions[indices]] = True
            lines.append(stays.nonzero()[:, 0])
        longest = max(line.numel() for line in lines)
        rows = torch.stack([torch.nn.functional.pad(line, (longest - line.numel(), 0), value=-1) for line in lines])
        old = self.state.columns(stage, self.past, self.batch, self.device)
        new = torch.where(rows < 0, -1, rows + self.past)
        shift, bias = marks.shifted(self, stage, kept), marks.bias(self, stage, rows, kept)
        self.state.views[stage] = View(torch.cat([old, new], dim=1), self.total, shift, bias)
        self.rows[stage] = rows
        self.stayed[stage] = [indices.numel() for indices in kept]
        self.held.clear()
        self.alive = kept


def places(listed: Tensor, size: int) -> Tensor:
    """The inverse of `listed`: for each of `size` positions its place in it, (B, size); -1 if absent."""
    found = torch.full((listed.shape[0], size + 1), -1, dtype=torch.int64, device=listed.device)
    order = torch.arange(listed.shape[1], device=listed.device).expand_as(listed)
    # padding (-1) is written to the extra last entry, which is cut off
    return found.scatter_(1, torch.where(listed < 0, size, listed), order)[:, :size]
