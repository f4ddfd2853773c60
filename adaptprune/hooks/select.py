"""One pruning stage: gathers the cues, asks the method, and notes in the `Call` what is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.cues import VisualTokens
from adaptprune.errors import AdaptPruneError
from adaptprune.families import Layout, join
from adaptprune.hooks.holds import Hold, broken, hook
from adaptprune.hooks.probe import last_token_attention
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams.attention import install
from adaptprune.hooks.seams.layers import (
    attention_of,
    chosen_before,
    has_keys,
    key_projection,
    mixes_streams,
    normalised,
)
from adaptprune.hooks.seams.parts import Parts
from adaptprune.hooks.state import BELOW, Call, History, places
from adaptprune.pruner import Pruner


class Selector:
    """Applies one method at its stages.

    Parameters
    ----------
    pruner : Pruner
    found : Parts
    current : callable
        The `Call` under way in this thread, or None.
    """

    #: The layers before which tokens leave, ascending.
    stages: tuple[int, ...] = ()

    def __init__(self, pruner: Pruner, found: Parts, current: Callable[[], Call | None]) -> None:
        self.pruner, self.layers, self._current = pruner, found.layers, current
        self.keyless, self.sources = found.keyless, found.sources
        self.planned = pruner.stages(len(self.layers))
        self.stages = self.stages or (() if pruner.keeps_all else self.planned)

    def check(self, smallest: int) -> None:
        """Raise AdaptPruneError for a layer that does not exist or comes too early or late, or that lacks a cue.

        Parameters
        ----------
        smallest : int
            The first layer before which tokens can leave this model.
        """
        first, last = max(smallest, self.pruner.smallest_layer), min([len(self.layers) - 1, *self.sources.values()])
        for layer in self.planned:
            if layer < smallest:
                raise AdaptPruneError(
                    f"layer={layer} is too early for this model, which changes all visual tokens up to layer "
                    f"{smallest - 1}: use layer={first} or later."
                )
            if layer >= len(self.layers):
                raise AdaptPruneError(
                    f"layer={layer} is outside the model, which has {len(self.layers)} decoder layers: "
                    f"use {first} to {last}."
                )
            if layer > last:
                readers = ", ".join(str(reader) for reader, source in self.sources.items() if source < layer)
                raise AdaptPruneError(
                    f"layer={layer} is too late for this model, whose layers {readers} read the keys of a layer before "
                    f"it, and would see dropped tokens again: use {first} to {last}."
                )
            if chosen_before(self.layers, layer):
                works = [each for each in range(first, last + 1) if not chosen_before(self.layers, each)]
                raise AdaptPruneError(
                    f"layer={layer} does not suit this model: behind it, keys are read that an earlier layer has "
                    f"chosen by their places, which pruning moves. Use layer={' or '.join(map(str, works))}."
                )
            if not self._has_cues(layer):
                raise self._without_cues(layer, range(first, last + 1))

    def _has_cues(self, layer: int) -> bool:
        """Whether a stage before `layer` can see what the method compares."""
        needs, keys = self.pruner.needs, {"keys", "raw_keys"}
        before = layer - 1
        if "attention" in needs and before in self.keyless:
            return False
        if "previous_keys" in needs and not has_keys(self.layers[before]):
            return False
        return not needs & keys or (has_keys(self.layers[layer]) and not mixes_streams(self.layers[layer]))

    def _without_cues(self, layer: int, allowed: range) -> AdaptPruneError:
        """The error for a layer that lacks a cue: it names the next one that works, or what else does."""
        lacks = "attention" if layer - 1 in self.keyless and "attention" in self.pruner.needs else "keys of its own"
        if lacks != "attention" and mixes_streams(self.layers[layer]):
            lacks = "keys that are known before it has mixed its streams of states"
        where = layer - 1 if lacks == "attention" or "previous_keys" in self.pruner.needs else layer
        works = [each for each in allowed if self._has_cues(each)]
        after = [each for each in works if each > layer] or works[-1:]
        keys = [each for each in allowed if each > 0 and has_keys(self.layers[each - 1])]
        keys = [each for each in keys if each >= layer] or keys[-1:]
        if after:
            use = f"layer={after[0]}"
        else:
            use = f"layer={keys[0]} with keys='previous', or fastv there" if keys else "a method without cues (grid)"
        return AdaptPruneError(
            f"layer={layer} does not suit this model: {self.pruner.name} looks at layer {where}, which has no {lacks}. "
            f"Use {use}."
        )

    @property
    def watched(self) -> list[nn.Module]:
        """The layers whose attention is looked at."""
        if "attention" not in self.pruner.needs:
            return []
        before = (stage - 1 for stage in self.stages if stage <= len(self.layers))
        return [self.layers[layer] for layer in before if layer not in self.keyless]

    def watch(self) -> list[Hold]:
        """Start to capture the cues."""
        undo: list[Hold] = []
        for stage in self.stages:
            if "attention" in self.pruner.needs:
                seen = partial(self._see_attention, stage - 1)
                undo.append(Hold("the watch on attention", *install(attention_of(self.layers[stage - 1]), seen)))
            if "previous_keys" in self.pruner.needs:
                projection = key_projection(self.layers[stage - 1])
                undo += hook(projection, f"the keys of layer {stage - 1}", after=partial(self._see_keys, stage - 1))
        return undo

    def _see_attention(self, layer: int, *cues: Any) -> None:
        call = self._current()
        if call is not None and (call.layouts is not None or self._chooses_anew(call)):
            start = time.perf_counter()
            call.attention[layer] = last_token_attention(call, layer, *cues), call.columns_at(layer)
            call.selection_seconds += time.perf_counter() - start

    def _see_keys(self, layer: int, module: nn.Module, args: Any, output: Tensor) -> None:
        call = self._current()
        if call is not None and output is not None:  # an exception is on its way
            call.keys[layer] = output

    # -- choosing ---------------------------------------------------------------------------------------------------

    def drop(self, call: Call, stage: int, hidden: Tensor) -> None:
        """Select for every sample and group of tokens that shares a budget, and note the result in `call`."""
        start = time.perf_counter()
        assert call.layouts is not None
        before = call.rows_at(stage)
        slots = places(before, call.length) if before is not None else None
        kept, ends = [], call.last_row()
        for row, (layout, alive) in enumerate(zip(call.layouts, call.alive, strict=True)):
            chosen = [alive[:0]]
            groups = self.pruner.groups(layout.images, layout.coords)
            for group in torch.unique(groups):
                members = alive[groups[alive] == group]
                size = int((groups == group).sum())
                num_keep = self.pruner.counts(size, len(self.layers))[stage]
                if num_keep < members.numel() or self.pruner.adaptive:
                    tokens = self._tokens(call, stage, hidden, row, layout, members, slots)
                    keep = self._checked(self.pruner.choose(tokens, num_keep), len(tokens), num_keep)
                    members = members[keep.to(members.device)]
                    if type(self.pruner).merge is not Pruner.merge:
                        states = self.pruner.merge(tokens, keep)
                        call.merged.setdefault(stage, []).append((row, layout.positions[members], states))
                chosen.append(members)
            # the answer is read off the last token, so it stays whatever it is
            chosen.append((layout.positions == ends[row]).nonzero()[:, 0])
            kept.append(torch.cat(chosen).unique())
        if (
            stage == self.stages[-1]
            and self.pruner.num_keep is None
            and sum(map(len, kept)) == sum(len(layout.positions) for layout in call.layouts)
        ):
            raise AdaptPruneError(
                f"keep_ratio={self.pruner.keep_ratio} keeps all {sum(map(len, kept))} visual tokens of this prompt, so "
                "nothing would be pruned: use a smaller one, or run the model without pruning."
            )
        call.keep(stage, kept)
        call.selection_seconds += time.perf_counter() - start

    def _checked(self, keep: Tensor, size: int, num_keep: int) -> Tensor:
        """What `select` returned, if it is what its contract says."""
        fits = keep.ndim == 1 and keep.dtype == torch.int64 and 1 <= keep.numel() <= num_keep
        if not fits or keep[0] < 0 or keep[-1] >= size or not bool((keep.diff() > 0).all()):
            raise AdaptPruneError(
                f"method {self.pruner.name!r} returned {tuple(keep.shape)} {keep.dtype} for num_keep={num_keep} "
                f"of {size} tokens: select has to return 1 to num_keep different int64 indices in ascending order."
            )
        return keep

    def _check_cues(self, call: Call, stage: int) -> None:
        """Raise AdaptPruneError if a cue was not captured: its layer no longer works as it was watched."""
        for cue, captured in (("attention", call.attention), ("previous_keys", call.keys)):
            if cue in self.pruner.needs and stage - 1 not in captured:
                raise broken(f"layer {stage - 1} ran, and its {cue.removeprefix('previous_')} were not seen")

    def _tokens(
        self, call: Call, stage: int, hidden: Tensor, row: int, layout: Layout, members: Tensor, slots: Tensor | None
    ) -> VisualTokens:
        """What the pruner sees of one group of tokens."""
        positions = layout.positions[members]
        place = positions if slots is None else slots[row, positions]
        states = hidden[row, place.to(hidden.device)]
        self._check_cues(call, stage)
        attention, listed = call.attention.get(stage - 1, (None, None))
        if attention is not None and listed is not None:
            columns = places(listed[row : row + 1], call.total)[0, positions + call.past].to(attention.device)
            # a sliding layer may not hold every token: what it does not hold it pays no attention to
            attention = attention[row][:, columns.clamp_min(0)].masked_fill(columns < 0, 0).to(states.device)
            if call.window_at(stage - 1) is not None:
                call.unseen[stage] = call.unseen.get(stage, 0) + int((attention.sum(dim=0) == 0).sum())
        keys = None
        if "previous_keys" in self.pruner.needs:
            keys = call.keys[stage - 1][row, place.to(call.keys[stage - 1].device)].to(states.device)
        elif "keys" in self.pruner.needs:
            layer = self.layers[stage]
            keys = key_projection(layer)(normalised(layer, states)).to(states.device)
        elif "raw_keys" in self.pruner.needs:
            keys = key_projection(self.layers[stage])(states).to(states.device)
        return VisualTokens(states, layout.coords[members].to(states.device), attention, keys)

    # -- choosing anew ----------------------------------------------------------------------------------------------

    def _chooses_anew(self, call: Call) -> bool:
        history = call.state.history
        return history is not None and call.past > 0 and call.reads_prompt

    def remember(self, call: Call, hidden: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        """Before the first stage of a model that is to choose anew at every turn: keep what that needs.

        Such a model has one stream of hidden states, (B, L, D), and every layer of it attends (`prune` sees to that).

        Returns the states that go on into the layer: those of this forward or, if it is a later turn's prompt, those
        of the whole conversation, for which `call` and the cache of the layers from here on then begin at position 0.
        """
        state, past = call.state, call.past
        if past > (state.history.length if state.history is not None else 0):
            raise AdaptPruneError(
                "this cache was filled without reselect=True, so its earlier tokens cannot be chosen anew: use "
                "reselect=True from the first turn on, or begin a new cache."
            )
        anew = self._chooses_anew(call)
        if state.history is None or not past:
            state.history = History([], [Layout.empty(call.device) for _ in range(call.batch)])
        history = state.history
        keys = call.keys.get(self.stages[0] - 1)
        history.add(past, (hidden, *rotary) if keys is None else (hidden, *rotary, keys))
        if call.layouts is not None:
            history.layouts = [join(a, b, past) for a, b in zip(history.layouts, call.layouts, strict=True)]
        if not anew or not any(layout.positions.numel() for layout in history.layouts):
            return hidden
        for stage in [stage for stage in state.views if stage != BELOW]:
            del state.views[stage]
        for index in range(self.stages[0], len(self.layers)):
            kv.empty(call.cache, index)
        whole = history.joined()
        call.anew, call.past, call.length, call.rotary = past, 0, call.total, whole[1:3]
        if keys is not None:
            call.keys[self.stages[0] - 1] = whole[3]
        call.consider(history.layouts)
        return whole[0]
