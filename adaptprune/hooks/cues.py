"""What a rule asked for: captured while a forward runs, and cut to the visual tokens that share a budget.

Each cue of `adaptprune.cues.CUES` is found here once where a model may lack it (`Cues.lacking`), once where it is
captured and once where it is cut (`Cues.tokens`). What the vision tower has to say comes from `adaptprune.hooks.tower`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.cues import VisualTokens
from adaptprune.errors import AdaptPruneError
from adaptprune.families import Layout
from adaptprune.hooks.holds import Hold, broken, hook
from adaptprune.hooks.narrow import narrow_mask
from adaptprune.hooks.probe import affinity, attention_rows, next_attention
from adaptprune.hooks.seams import calls
from adaptprune.hooks.seams.attention import Watched, backend, install
from adaptprune.hooks.seams.layers import (
    attention_of,
    final_norm,
    finds_attention,
    has_keys,
    key_projection,
    mixes_streams,
    normalised,
)
from adaptprune.hooks.seams.parts import Parts
from adaptprune.hooks.seams.rotary import takes
from adaptprune.hooks.state import Call, places
from adaptprune.hooks.tower import Tower
from adaptprune.pruner import Pruner

#: Cues that are seen when layer K-1 attends.
ATTENDED = frozenset({"attention", "rows", "rotated_keys"})
#: What can be remembered from turn to turn, to choose anew.
REMEMBERED = frozenset({"attention", "keys", "raw_keys", "previous_keys", "rotary"})


class Cues:
    """The cues of one rule on one model.

    Parameters
    ----------
    pruner : Pruner
    found : Parts
    current : callable
        The `Call` under way in this thread, or None.
    """

    def __init__(self, pruner: Pruner, found: Parts, current: Callable[[], Call | None]) -> None:
        self._layers, self._keyless, self._decoder, self._current = found.layers, found.keyless, found.decoder, current
        count = len(found.layers)
        self._count, self._pruner = count, pruner
        self.at = {stage: pruner.cues(stage, count) for stage in pruner.stages(count)}
        #: The cues of all stages.
        self.all: frozenset[str] = frozenset().union(*self.at.values())
        self.tower = Tower(found, self.all)

    def asked(self, stage: int) -> frozenset[str]:
        """The cues of a stage."""
        return self.at[stage] if stage in self.at else self._pruner.cues(stage, self._count)

    @property
    def first(self) -> int | None:
        """The first layer whose incoming states are noted; None if none's are."""
        wanted = [0] if self.all & {"features", "affinity"} else []
        wanted += [stage - 1 for stage, cues in self.at.items() if "previous_hidden" in cues]
        return min(wanted, default=None)

    # -- whether they can be had

    def lacking(self, layer: int) -> tuple[int, str] | None:
        """What a stage before `layer` could not see: the layer that it looks at, and what that lacks."""
        asked, before, current = self.asked(layer), layer - 1, self._layers[layer]
        if asked & ATTENDED and before in self._keyless:
            return before, "attention"
        if "previous_keys" in asked and not has_keys(self._layers[before]):
            return before, "keys of its own"
        if asked & {"keys", "raw_keys"} and not has_keys(current):
            return layer, "keys of its own"
        if "next_attention" in asked and (layer in self._keyless or finds_attention(current) is None):
            return layer, "attention"
        if asked & {"keys", "raw_keys", "next_attention"} and mixes_streams(current):
            return layer, "keys that are known before it has mixed its streams of states"
        if "affinity" in asked and (0 in self._keyless or mixes_streams(self._layers[0])):
            return 0, "queries and keys of its own" if 0 in self._keyless else "queries that are known before it runs"
        if "rotary" in asked and not takes(current):
            return layer, "position embeddings handed to it"
        if "final" in asked:
            final_norm(self._decoder)
        return None

    # -- capturing them

    @property
    def watched(self) -> list[nn.Module]:
        """The layers whose attention is looked at."""
        before = (stage - 1 for stage, cues in self.at.items() if cues & ATTENDED and stage <= self._count)
        return [self._layers[layer] for layer in before if layer not in self._keyless]

    def watch(self) -> list[Hold]:
        """Start to look at attention and keys."""
        undo = self.tower.watch()
        for stage, cues in self.at.items():
            if cues & ATTENDED:
                seen = partial(self._see_attention, stage - 1, cues)
                undo.append(Hold("the watch on attention", *install(attention_of(self._layers[stage - 1]), seen)))
            if "previous_keys" in cues:
                projection = key_projection(self._layers[stage - 1])
                undo += hook(projection, f"the keys of layer {stage - 1}", after=partial(self._see_keys, stage - 1))
        return undo

    def _see_attention(self, layer: int, cues: frozenset[str], *handed: Any) -> None:
        call = self._current()
        if call is None or not call.chooses:
            return
        start, seen = time.perf_counter(), Watched(*handed)
        if "attention" in cues:
            last = call.last_row()[:, None]
            call.seen["attention", layer] = attention_rows(call, layer, seen, last)[:, :, 0], call.columns_at(layer)
        if "rows" in cues:
            lines = [
                attention_rows(call, layer, seen, words[None], row)[0] for row, words in enumerate(call.instructions())
            ]
            call.seen["rows", layer] = lines, call.columns_at(layer)
        if "rotated_keys" in cues:
            call.seen["rotated_keys", layer] = seen.key, call.columns_at(layer)
        call.selection_seconds += time.perf_counter() - start

    def _see_keys(self, layer: int, module: nn.Module, args: Any, output: Tensor) -> None:
        call = self._current()
        if call is not None and output is not None:  # an exception is on its way
            call.seen["previous_keys", layer] = output

    def note(self, call: Call, layer: int, hidden: Tensor, arguments: dict[str, Any]) -> None:
        """Look at what a layer is about to read, (B, S, D), of a call that may drop tokens.

        Parameters
        ----------
        arguments : dict
            The layer's other arguments, of all tokens of the forward.
        """
        if not call.chooses:
            return
        if not layer and "features" in self.all:
            call.seen["features", 0] = hidden, call.rows_at(0)
        if not layer and "affinity" in self.all:
            call.seen["affinity", 0] = affinity(call, self._layers[0], hidden, arguments)
        if "previous_hidden" in self.at.get(layer + 1, ()):
            call.seen["previous_hidden", layer] = hidden, call.rows_at(layer)

    # -- cutting them

    def tokens(
        self, call: Call, stage: int, hidden: Tensor, arguments: dict[str, Any], row: int, members: Tensor
    ) -> VisualTokens:
        """What the rule sees of one group of tokens, before `stage` has dropped any.

        Parameters
        ----------
        hidden : Tensor, (B, S, D)
        arguments : dict
            The layer's other arguments, of all tokens of the forward.
        row : int
            Of the batch.
        members : Tensor, (N,)
            Indices into the row's layout.
        """
        assert call.layouts is not None
        layout: Layout = call.layouts[row]
        asked, positions = self.asked(stage), layout.positions[members]
        cut = _Cut(call, row, positions, hidden.device)
        rows = call.rows_at(stage)
        found: dict[str, Any] = {}
        states = cut.tokens(hidden, rows)
        if asked & {"text_hidden", "final"}:
            words = cut.words(hidden, rows)
            found["text_hidden"] = words if "text_hidden" in asked else None
        if "final" in asked:
            norm = final_norm(self._decoder)
            found["final"], found["text_final"] = (norm(each).to(hidden.device) for each in (states, words))
        if "keys" in asked:
            layer = self._layers[stage]
            found["keys"] = key_projection(layer)(normalised(layer, states)).to(hidden.device)
        if "raw_keys" in asked:
            found["keys"] = key_projection(self._layers[stage])(states).to(hidden.device)
        if "next_attention" in asked:
            whole = self._next_attention(call, stage, hidden, arguments)[row]
            found["next_attention"] = whole[:, cut.slots(rows).to(whole.device)].to(hidden.device)
        if "rotary" in asked:
            found["rotary"] = cut.rotary(arguments, stage)
        found.update(self._captured(call, stage, asked, cut))
        found.update(self.tower.gather(asked, layout, members, hidden.device))
        coords = layout.coords[members].to(hidden.device)
        return VisualTokens(states, coords, layer=stage, num_layers=self._count, **found)

    def _next_attention(self, call: Call, stage: int, hidden: Tensor, arguments: dict[str, Any]) -> list[Tensor]:
        """See `next_attention`: by row, worked out for the first group of a stage that asks."""
        if ("next_attention", stage) not in call.seen:
            mask = narrow_mask(call, stage, arguments.get(calls.MASK), backend(self._decoder))
            found = next_attention(call, stage, self._layers[stage], hidden, arguments, mask)
            call.seen["next_attention", stage] = found
        lines: list[Tensor] = call.seen["next_attention", stage]
        return lines

    def _captured(self, call: Call, stage: int, asked: frozenset[str], cut: _Cut) -> dict[str, Any]:
        """The cues that were seen before, cut."""
        found: dict[str, Any] = {}
        for cue in sorted(asked & {*ATTENDED, "previous_keys", "previous_hidden"}):
            if (cue, stage - 1) not in call.seen:
                name = cue.removeprefix("previous_")
                raise broken(f"layer {stage - 1} ran, and its {name} were not seen")
        if "attention" in asked:
            lines, listed = call.seen["attention", stage - 1]
            found["attention"] = attention = cut.columns(lines[cut.row], listed)
            if call.window_at(stage - 1) is not None:
                call.unseen[stage] = call.unseen.get(stage, 0) + int((attention.sum(dim=0) == 0).sum())
        if "rows" in asked:
            lines, listed = call.seen["rows", stage - 1]
            found["rows"] = cut.columns(lines[cut.row], listed)
        if "rotated_keys" in asked:
            keys, listed = call.seen["rotated_keys", stage - 1]
            flat = keys[cut.row].transpose(0, 1).flatten(1).T  # (Hk * d, S)
            found["rotated_keys"] = cut.columns(flat, listed).T
            found["text_rotated_keys"] = cut.columns(flat, listed, cut.instruction).T
        if "previous_keys" in asked:
            found["keys"] = cut.tokens(call.seen["previous_keys", stage - 1], call.rows_at(stage))
        if "previous_hidden" in asked:
            found["previous_hidden"] = cut.tokens(*call.seen["previous_hidden", stage - 1])
        if "features" in asked:
            states, rows = call.seen["features", 0]
            found["features"], found["text"] = cut.tokens(states, rows), cut.words(states, rows)
        if "affinity" in asked:
            found["affinity"] = call.seen["affinity", 0][cut.row][:, :, cut.positions].to(cut.device)
        return found


class _Cut:
    """The places of some visual tokens, and of the instruction, of one row of a batch.

    Parameters
    ----------
    positions : Tensor, (N,)
        Among the incoming tokens of the forward.
    device
        Where the rule works.
    """

    def __init__(self, call: Call, row: int, positions: Tensor, device: torch.device) -> None:
        self._call, self.row, self.positions, self.device = call, row, positions, device
        self.instruction = call.instructions()[row]

    def slots(self, rows: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """Where tokens are among those that a layer is handed; None: it is handed all."""
        positions = self.positions if positions is None else positions
        if rows is None:
            return positions
        return places(rows[self.row : self.row + 1], self._call.length)[0, positions]

    def tokens(self, states: Tensor, rows: Tensor | None) -> Tensor:
        """States of the visual tokens, (N, D), out of (B, S, D)."""
        return states[self.row, self.slots(rows).to(states.device)].to(self.device)

    def words(self, states: Tensor, rows: Tensor | None) -> Tensor:
        """States of the instruction tokens, (T, D)."""
        return states[self.row, self.slots(rows, self.instruction).to(states.device)].to(self.device)

    def rotary(self, arguments: dict[str, Any], stage: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the visual tokens, (N, d) each, whatever axes there are put side by side."""
        try:
            cos, sin = calls.cos_sin(arguments)
        except calls.WithoutRotary as error:
            raise AdaptPruneError(
                f"position embeddings cannot be compared before layer {stage}, for {error}: use another layer."
            ) from None
        return self._turns(cos), self._turns(sin)

    def _turns(self, part: Tensor) -> Tensor:
        line = part[self.row if part.shape[0] > 1 else 0]
        return line[self.positions.to(line.device)].flatten(1).to(self.device)

    def columns(self, values: Tensor, listed: Tensor, positions: Tensor | None = None) -> Tensor:
        """The last axis of (..., S), which counts what a cache holds (`listed`), cut to tokens.

        A sliding layer may not hold every token: what it does not hold it pays no attention to.
        """
        where = places(listed[self.row : self.row + 1], self._call.total)[0]
        positions = self.positions if positions is None else positions
        columns = where[positions + self._call.past].to(values.device)
        return values[..., columns.clamp_min(0)].masked_fill(columns < 0, 0).to(self.device)
