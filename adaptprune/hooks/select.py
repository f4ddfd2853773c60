"""One pruning stage: gathers the cues, asks the method, and notes in the `Call` what is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.cues import VisualTokens
from adaptprune.errors import AdaptPruneError
from adaptprune.families import Layout, join
from adaptprune.hooks import addons
from adaptprune.hooks.cues import Cues
from adaptprune.hooks.holds import Hold
from adaptprune.hooks.marks import weigh
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams.layers import chosen_before, has_keys
from adaptprune.hooks.seams.parts import Parts
from adaptprune.hooks.state import BELOW, Call, History
from adaptprune.hooks.tower import Tower
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
    #: Whether the report is to have the rule's scores.
    explain = False

    def __init__(self, pruner: Pruner, found: Parts, current: Callable[[], Call | None]) -> None:
        self.pruner, self.layers, self._found = pruner, found.layers, found
        self.keyless, self.sources = found.keyless, found.sources
        self.cues = Cues(pruner, found, current)
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
        self.cues.tower.check()
        addons.check(self.pruner, self._found, min(self.planned, default=0))

    def _has_cues(self, layer: int) -> bool:
        """Whether a stage before `layer` can see what the method compares."""
        return self.cues.lacking(layer) is None

    def _without_cues(self, layer: int, allowed: range) -> AdaptPruneError:
        """The error for a layer that lacks a cue: it names the next one that works, or what else does."""
        missing = self.cues.lacking(layer)
        assert missing is not None
        where, lacks = missing
        works = [each for each in allowed if self._has_cues(each)]
        after = [each for each in works if each > layer] or works[-1:]
        keys = [each for each in allowed if each > 0 and has_keys(self.layers[each - 1])]
        keys = [each for each in keys if each >= layer] or keys[-1:]
        if after:
            use = f"layer={after[0]}"
        elif keys and self.cues.asked(layer) & {"keys", "raw_keys"}:
            use = f"layer={keys[0]} with keys='previous', or fastv there"
        elif self.cues.asked(layer) == {"rotary"} and self.pruner.coordinate_tokens:
            use = "coordinate_tokens=0"
        else:
            use = "a method without cues (grid), or one that compares features (divprune)"
        return AdaptPruneError(
            f"layer={layer} does not suit this model: {self.pruner.name} looks at layer {where}, which has no {lacks}. "
            f"Use {use}."
        )

    @property
    def watched(self) -> list[nn.Module]:
        """The layers whose attention is looked at."""
        return self.cues.watched if self.stages else []

    @property
    def first(self) -> list[int]:
        """The first layer whose incoming states are looked at, if any are."""
        return [self.cues.first] if self.stages and self.cues.first is not None else []

    @property
    def tower(self) -> Tower | None:
        """What is looked at of the vision tower; None for nothing."""
        return self.cues.tower if self.stages and self.cues.tower.wanted else None

    def watch(self) -> list[Hold]:
        """Start to capture the cues."""
        return self.cues.watch() if self.stages else []

    # -- choosing ---------------------------------------------------------------------------------------------------

    def drop(self, call: Call, stage: int, hidden: Tensor, arguments: dict[str, Any]) -> None:
        """Select for every sample and group of tokens that shares a budget, and note the result in `call`.

        Parameters
        ----------
        hidden : Tensor, (B, S, D)
            What the layer is about to read.
        arguments : dict
            Its other arguments, of all tokens of the forward.
        """
        start = time.perf_counter()
        assert call.layouts is not None
        kept, ends = [], call.last_row()
        for row, (layout, alive) in enumerate(zip(call.layouts, call.alive, strict=True)):
            chosen = [alive[:0]]
            groups = self.pruner.groups(layout.images, layout.coords)
            sizes = dict(zip(*(each.tolist() for each in torch.unique(groups, return_counts=True)), strict=True))
            call.asked[row] = sum(map(self.pruner.target, sizes.values()))
            for group, size in sizes.items():
                members = alive[groups[alive] == group]
                num_keep = self.pruner.counts(size, len(self.layers))[stage]
                if num_keep < members.numel() or self.pruner.adaptive:
                    tokens = self.cues.tokens(call, stage, hidden, arguments, row, members)
                    memo = call.memos.setdefault((row, group), {})
                    members = self._stay(call, stage, row, members, replace(tokens, size=size, memo=memo), num_keep)
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

    def _stay(self, call: Call, stage: int, row: int, members: Tensor, tokens: VisualTokens, num_keep: int) -> Tensor:
        """The tokens of a group, indices into its row's layout, that the rule keeps; notes what they go on with."""
        assert call.layouts is not None
        if self.explain and stage == self.stages[0]:
            call.scores.setdefault(row, []).append((members, self._scores(tokens)))
        keep = self._checked(self.pruner.choose(tokens, num_keep), len(tokens), num_keep)
        members = members[keep.to(members.device)]
        if self.pruner.key_bias:
            weigh(call, row, members, self._bias(tokens, keep))
        if type(self.pruner).merge is not Pruner.merge:
            states = self.pruner.merge(tokens, keep)
            call.merged.setdefault(stage, []).append((row, call.layouts[row].positions[members], states))
        return members

    def _scores(self, tokens: VisualTokens) -> Tensor:
        """How the rule ranks tokens, (N,) on the CPU; nan where it has no rank."""
        try:
            scores = self.pruner.score(tokens)
        except NotImplementedError:
            return torch.full((len(tokens),), torch.nan)
        return scores.detach().float().cpu()

    def _checked(self, keep: Tensor, size: int, num_keep: int) -> Tensor:
        """What `select` returned, if it is what its contract says."""
        fits = keep.ndim == 1 and keep.dtype == torch.int64 and 1 <= keep.numel() <= num_keep
        if not fits or keep[0] < 0 or keep[-1] >= size or not bool((keep.diff() > 0).all()):
            raise AdaptPruneError(
                f"method {self.pruner.name!r} returned {tuple(keep.shape)} {keep.dtype} for num_keep={num_keep} "
                f"of {size} tokens: select has to return 1 to num_keep different int64 indices in ascending order."
            )
        return keep

    def _bias(self, tokens: VisualTokens, keep: Tensor) -> Tensor:
        """What is added for the keys of kept tokens, (n,), out of how many tokens each stands for."""
        weights = self.pruner.weights(tokens, keep)
        if weights.shape != keep.shape or not bool((weights.isfinite() & (weights > 0)).all()):
            raise AdaptPruneError(
                f"method {self.pruner.name!r} gave weights {tuple(weights.shape)} for {len(keep)} kept tokens: weights "
                "says how many tokens each stands for, a number above 0."
            )
        return self.pruner.key_bias * weights.double().log()

    # -- choosing anew ----------------------------------------------------------------------------------------------

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
        anew = state.history is not None and past > 0 and call.reads_prompt
        if state.history is None or not past:
            state.history = History([], [Layout.empty(call.device) for _ in range(call.batch)])
        history = state.history
        keys = call.seen.get(("previous_keys", self.stages[0] - 1))
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
            call.seen["previous_keys", self.stages[0] - 1] = whole[3]
        call.consider(history.layouts)
        return whole[0]
