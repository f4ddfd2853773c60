"""What the vision tower has to say about visual tokens: captured while pictures are encoded, and kept with their cells.

Cells go wherever features go: with what an encode method returned, with the call of `generate()`, with features that
are recognised among embeddings. What was seen of a picture or video is an attribute of its cells.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.cues import TowerLayer
from adaptprune.errors import AdaptPruneError
from adaptprune.families import Layout
from adaptprune.families.base import SEEN, flat
from adaptprune.families.generic import queries
from adaptprune.hooks.holds import Hold, broken, hook
from adaptprune.hooks.origins import Origins, Unclear, measure
from adaptprune.hooks.projector import Projector
from adaptprune.hooks.received import class_row, received
from adaptprune.hooks.seams import parts, towers
from adaptprune.hooks.seams.attention import Watched, install
from adaptprune.hooks.seams.parts import Parts
from adaptprune.hooks.seams.towers import Stack

LAYER = "tower:"
PROJECTOR, CLASS = "projector", "class_state"
#: Layouts of pictures for which it is remembered which patches their tokens are made of.
REMEMBERED = 256
INSTEAD = (
    "Use a rule that ranks by the cue 'affinity' (hawk, adaptprune-encoder:cue=affinity), or one that compares "
    "features (divprune)"
)


def is_tower(cue: str) -> bool:
    """Whether a cue is captured here."""
    return cue.startswith(LAYER) or cue in (PROJECTOR, CLASS)


@dataclass
class _Taking:
    """One call of an encode method."""

    attended: dict[tuple[int, int], list[Watched]] = field(default_factory=dict)
    states: dict[int, list[Tensor]] = field(default_factory=dict)
    tuples: dict[int, bool] = field(default_factory=dict)


class _Local(local):
    taking: _Taking | None = None


class Tower:
    """The cues of a model's tower that a rule asks for.

    Parameters
    ----------
    found : Parts
    wanted : frozenset of str
        Cues; those that are captured elsewhere are not looked at.
    """

    def __init__(self, found: Parts, wanted: frozenset[str]) -> None:
        self.wanted = frozenset(filter(is_tower, wanted))
        self._found, self._config = found, found.model.config
        self._stacks = towers.stacks(found) if self.wanted else []
        self._projector = Projector(found, self._stacks) if self.wanted & {PROJECTOR, CLASS} else None
        self._thread = _Local()
        self._known: OrderedDict[Hashable, dict[int, Origins]] = OrderedDict()

    @property
    def numbers(self) -> list[int]:
        """The layers that are asked for, as the rule writes them."""
        return sorted(int(cue.removeprefix(LAYER)) for cue in self.wanted if cue.startswith(LAYER))

    # -- whether they can be had

    def lacking(self) -> str | None:
        """Why a cue cannot be had of this model; None if all can."""
        return next((reason for cue in sorted(self.wanted) if (reason := self._lacks(cue))), None)

    def check(self) -> None:
        """Raise AdaptPruneError if a cue cannot be had."""
        for cue in sorted(self.wanted):
            if reason := self._lacks(cue):
                raise self._refused(cue, reason)

    def _refused(self, cue: str, reason: str) -> AdaptPruneError:
        kind = getattr(self._config, "model_type", type(self._found.base).__name__)
        beside = "Leave the class token out (visionzip:class_token=False). " if cue == CLASS and self._stacks else ""
        return AdaptPruneError(f"{cue!r} cannot be had of model type {kind!r}: {reason}. {beside}{INSTEAD}.")

    def _lacks(self, cue: str) -> str | None:
        if not self._stacks:
            return "it has no vision tower whose attention can be looked at"
        if queries(self._config):
            return "its visual tokens are learned queries, which no patch stands for"
        if cue.startswith(LAYER):
            return self._lacks_layer(cue.removeprefix(LAYER))
        if cue == CLASS and any(towers.selected(self._found, stack) is None for stack in self._stacks):
            return "it does not project one layer of a tower with a class token, which it leaves out"
        return towers.NO_PROJECTOR if getattr(self._config, "model_type", None) in towers.APART else None

    def _lacks_layer(self, number: str) -> str | None:
        for stack in self._stacks:
            count = len(stack.layers)
            try:
                attention = stack.attentions[int(number)]
            except (ValueError, IndexError):
                return (
                    f"its tower has {count} layers, written {-count} (the first) to -1 (the last) or 0 to {count - 1}"
                )
            if attention is None:
                works = [place - count for place, each in enumerate(stack.attentions) if each is not None]
                return f"layer {number} of its tower has no attention, which layers {', '.join(map(str, works))} have"
        return None

    # -- capturing them

    def watch(self) -> list[Hold]:
        """Start to look at the tower."""
        held: list[Hold] = []
        for place, stack in enumerate(self._stacks):
            held += hook(stack.layers[0], "the tower's first layer", after=partial(self._see_kind, place))
            for number in sorted({each % len(stack.layers) for each in self.numbers}):
                attention = stack.attentions[number]
                assert attention is not None
                see = partial(self._see_attention, place, number)
                held.append(Hold("the watch on the tower's attention", *install(attention, see)))
            if CLASS in self.wanted:
                number = towers.selected(self._found, stack) or 0
                held += hook(
                    stack.layers[number], "the layer that is projected", after=partial(self._see_states, place)
                )
        return held + (self._projector.watch() if self._projector is not None else [])

    def _see_kind(self, place: int, module: nn.Module, args: Any, output: Any) -> None:
        if self._thread.taking is not None and output is not None:
            self._thread.taking.tuples[place] = isinstance(output, tuple)

    def _see_attention(self, place: int, number: int, *handed: Any) -> None:
        if self._thread.taking is not None:
            self._thread.taking.attended.setdefault((place, number), []).append(Watched(*handed))

    def _see_states(self, place: int, module: nn.Module, args: Any, output: Any) -> None:
        if self._thread.taking is not None and output is not None:
            states = output[0] if isinstance(output, tuple) else output
            self._thread.taking.states.setdefault(place, []).append(states)

    def during(self, encode: Callable[[], Any]) -> tuple[Any, Any]:
        """What `encode` returns, and what was seen meanwhile (for `note`); None if the tower did not run."""
        self._thread.taking = taking = _Taking()
        if self._projector is not None:
            self._projector.begin()
        try:
            encoded = encode()
        finally:
            self._thread.taking = None
            calls = self._projector.end() if self._projector is not None else []
        return encoded, ((taking, calls) if taking.tuples else None)

    # -- putting them to the tokens

    def known(self, cells: Sequence[Tensor] | None) -> bool:
        """Whether everything that is asked for was seen of pictures with these cells."""
        return cells is not None and all(self.wanted <= set(getattr(unit, SEEN, ())) for unit in cells)

    def note(
        self, taken: Any, again: Callable[[], Any], key: Hashable, features: Any, cells: Sequence[Tensor]
    ) -> list[Tensor]:
        """The cells of pictures, (n, 3) each, with what was seen while they were encoded.

        Parameters
        ----------
        taken
            What `during` returned.
        again : callable
            Encodes the same pictures once more, by the model's own method.
        key : hashable
            Equal for pictures whose tokens are made of the same patches.
        features : Tensor or sequence of Tensor
        """
        taking, ran = taken
        rows, placed = flat(features), torch.cat([unit.cpu() for unit in cells])
        found: dict[str, Any] = {}
        cue = min(self.wanted)
        try:
            place = _only(taking.tuples)
            origins = self._origins((place, key), again, self._stacks[place], taking.tuples[place], placed)
            for cue in (f"{LAYER}{number}" for number in self.numbers):
                found[cue] = self._layer(taking, place, int(cue.removeprefix(LAYER)), origins, cells)
            cue = PROJECTOR
            if self._projector is not None:
                found[cue] = handed = self._projector.of(ran, rows, placed[:, 0] >= 0)
            cue = CLASS
            if cue in self.wanted:
                found[cue] = self._class_states(taking, place, origins, handed)
        except Unclear as error:
            raise self._refused(cue, str(error)) from None
        return _with(cells, found)

    def _origins(
        self, key: Hashable, again: Callable[[], Any], stack: Stack, tuples: bool, placed: Tensor
    ) -> dict[int, Origins]:
        found = self._known.pop(key, None)
        if found is None or any(each.count != len(placed) for each in found.values()):
            found = measure(again, lambda made: flat(parts.features_of(made)), stack.layers, tuples, placed)
        self._known[key] = found
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _layer(
        self, taking: _Taking, place: int, number: int, origins: Mapping[int, Origins], cells: Sequence[Tensor]
    ) -> dict[str, Tensor | None]:
        stack = self._stacks[place]
        index = number % len(stack.layers)
        seen = taking.attended.get((place, index))
        if not seen:
            raise broken(f"layer {number} of the tower ran, and its attention was not seen")
        where = origins[max(start for start in origins if start <= index)]
        if sum(each.key.shape[0] * each.key.shape[2] for each in seen) != where.patches:
            raise Unclear("its attention has another number of patches than its layers")
        first = where.class_place(torch.cat([unit.cpu() for unit in cells])[:, 0] >= 0) if stack.class_width else None
        if first is not None and where.shapes != [(each.key.shape[0], each.key.shape[2]) for each in seen]:
            raise Unclear("its class tokens stand among the patches")
        _check_apart(seen, where.owners(cells), first is not None)
        attention = [received(each) if first is None else class_row(each, first) for each in seen]
        keys = torch.cat([each.key.transpose(0, 1).flatten(1, 2) for each in seen], dim=1)  # (H, P, d)
        means = where.mean(keys.transpose(1, 2)).transpose(1, 2).to(keys.dtype)
        query = None if first is None else torch.cat([each.query[:, :, first] for each in seen])
        return {
            "attention": where.mean(torch.cat(attention, dim=1)),
            "keys": means,
            "query": query,
            "row": where.rows(),
        }

    def _class_states(
        self, taking: _Taking, place: int, origins: Mapping[int, Origins], handed: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        states = torch.cat(taking.states[place])
        where = origins[min(origins)]
        given = handed["input"]
        own = states.flatten(0, 1)[where.patch.to(states.device)]
        if states.ndim != 3 or given.shape[1] != 1 or not torch.equal(own, given[where.token.to(given.device), 0]):
            raise Unclear("what its projector is handed is not one layer's states")
        return {"states": handed["project"](states[:, :1]), "row": where.rows()}

    def gather(self, asked: frozenset[str], layout: Layout, members: Tensor, device: torch.device) -> dict[str, Any]:
        """The fields of `VisualTokens` that are `asked`, for some tokens (indices into the layout, ascending)."""
        asked &= self.wanted
        if not asked:
            return {}
        units, places = layout.source[members].cpu().unbind(dim=1)
        picked = []
        for unit in units.unique().tolist():
            seen = layout.seen[unit] or {}
            if missing := sorted(asked - set(seen)):
                raise AdaptPruneError(
                    f"{missing[0]!r} of a picture was not seen: it was encoded before the model was pruned by this "
                    "rule, or many pictures ago. Encode it while the model is pruned."
                )
            picked.append((seen, places[units == unit]))
        found: dict[str, Any] = {}
        if numbers := [number for number in self.numbers if f"{LAYER}{number}" in asked]:
            found["tower"] = {number: _layer_of(picked, f"{LAYER}{number}", device) for number in numbers}
        if PROJECTOR in asked:
            inputs = [(seen[PROJECTOR]["input"], index) for seen, index in picked]
            found["projector_input"] = torch.cat([given[index.to(given.device)].to(device) for given, index in inputs])
            found["project"] = picked[0][0][PROJECTOR]["project"]
        if CLASS in asked:
            states = [seen[CLASS]["states"][seen[CLASS]["row"][index[0]]] for seen, index in picked]
            found[CLASS] = torch.stack([each.to(device) for each in states]).mean(dim=0)
        return found


def _check_apart(seen: Sequence[Watched], owners: Tensor, has_class: bool) -> None:
    """Raise if several pictures lie in one sequence, and it is not known what of it each place sees.

    `owners`, (P,), has the picture or video of each patch; -1 for none.
    """
    start = 0
    for each in seen:
        rows, count = each.key.shape[0], each.key.shape[2]
        lines = owners[start : start + rows * count].view(rows, count)
        start += rows * count
        several = any(len(set(line.tolist()) - {-1}) > 1 for line in lines)
        if several and has_class:
            raise Unclear("class tokens of several pictures stand in one sequence")
        if several and each.mask is None and each.lengths is None:
            raise Unclear(
                "its attention implementation is not told by a mask which patches are one picture's (load the model "
                "with attn_implementation='sdpa')"
            )


def _only(tuples: Mapping[int, bool]) -> int:
    if len(tuples) > 1:
        raise Unclear("several towers read one picture")
    return next(iter(tuples))


#: Of what was seen, what has one entry per token, and along which axis.
_AXES = {"attention": 1, "keys": 1, "row": 0, "input": 0}


def _with(cells: Sequence[Tensor], found: Mapping[str, Mapping[str, Any]]) -> list[Tensor]:
    """Cells, (n, 3) each, with their own part of what was seen of all of them."""
    made, start = [], 0
    for unit in cells:
        part = slice(start, start + len(unit))
        start = part.stop
        seen = {
            cue: {name: _cut(value, _AXES[name], part) if name in _AXES else value for name, value in values.items()}
            for cue, values in found.items()
        }
        own = unit.clone()  # some are one object for all pictures
        setattr(own, SEEN, {**getattr(unit, SEEN, {}), **seen})
        made.append(own)
    return made


def _cut(value: Tensor, axis: int, part: slice) -> Tensor:
    return value[part].clone() if axis == 0 else value[:, part].clone()


def _layer_of(picked: Sequence[tuple[Mapping[str, Any], Tensor]], cue: str, device: torch.device) -> TowerLayer:
    lines: dict[str, list[Tensor]] = {"attention": [], "keys": [], "query": []}
    rows = set()
    for number, (seen, index) in enumerate(picked):
        layer = seen[cue]
        for name in ("attention", "keys"):
            lines[name].append(layer[name][:, index.to(layer[name].device)].to(device))
        if layer["query"] is not None:
            own = layer["row"][index]
            rows |= {(number, row) for row in own.tolist()}
            lines["query"].append(layer["query"][own.to(layer["query"].device)].to(device))
    query = torch.cat(lines["query"]) if lines["query"] else None
    if query is not None and len(rows) == 1:
        query = query[0]
    return TowerLayer(torch.cat(lines["attention"], dim=1), torch.cat(lines["keys"], dim=1), query)


def again(base: Any, name: str, inputs: Mapping[str, Any]) -> Any:
    """Encode once more, by the model's own method, in a way that gradients can go through."""
    method = getattr(type(base), name)
    kwargs = {key: _ordinary(value) for key, value in inputs.items()}
    return method(base, **kwargs)


def _ordinary(value: Any) -> Any:
    """An argument that gradients can go through: tensors made under inference mode cannot."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_ordinary(each) for each in value)
    return value


def fingerprint(name: str, inputs: Mapping[str, Any]) -> Hashable:
    """Equal for arguments of an encode method that describe pictures of the same sizes."""
    return (name, *((key, _outline(value)) for key, value in sorted(inputs.items())))


def _outline(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        whole = value.dtype in (torch.bool, torch.int32, torch.int64)
        return (tuple(value.shape), value.cpu().numpy().tobytes() if whole else None)
    if isinstance(value, (list, tuple)):
        return tuple(_outline(each) for each in value)
    return repr(value)


def supports(model: nn.Module, cue: str) -> str | None:
    """Why a cue of the vision tower cannot be had of a model; None if it can, as far as its structure tells.

    Parameters
    ----------
    cue : str
        "tower:-2", "projector", "class_state".
    """
    return Tower(parts.parts_of(model), frozenset({cue})).lacking()
