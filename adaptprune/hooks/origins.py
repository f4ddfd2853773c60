"""Which patches of the vision tower each visual token is made of: measured on the model in hand, not looked up.

The encode method runs once more with layers that hand on what they are handed, so that only what stands before and
behind them is computed, and is asked by gradients which token each patch reaches. Tokens are numbered in digits, and a
gradient is taken per digit: where a patch reaches one token alone, it comes back as a multiple of that of all tokens,
and the factor is the digit. Permutations (windows), mergers, tiles put together, newlines: whatever a model does is
followed without being known. Where neighbouring tokens share patches (interpolation), tokens take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError, first_line
from adaptprune.hooks.holds import method
from adaptprune.hooks.seams.cache import parameters

#: Digits are below this, by whether numbers have 32 bits or fewer: rounding leaves them apart.
BASE = {True: 256, False: 8}
#: A patch reaches at most this many tokens along each side of a grid, if it reaches several.
AROUND = 4
#: How far a gradient may be from a multiple of another, by whether its numbers have 32 bits or fewer.
CLOSE = {True: 0.01, False: 0.2}
#: Gradients below this, of the largest, are rounding.
FAINT = 1e-6


class Unclear(AdaptPruneError):
    """Why something cannot be said of a model's tower, as a part of a sentence."""


@dataclass(frozen=True)
class Origins:
    """Of N visual tokens that were encoded together, the patches: P states in the order in which layers hold them.

    Attributes
    ----------
    patch, token : Tensor, (E,), int64
        Pairs.
    weight : Tensor, (E,), float32
        How much a patch counts in its token; those of a token sum to 1.
    count : int
        N.
    shapes : list of (int, int)
        Of each run of the tower, rows and states per row: P together.
    """

    patch: Tensor
    token: Tensor
    weight: Tensor
    count: int
    shapes: list[tuple[int, int]]

    @property
    def patches(self) -> int:
        """P."""
        return sum(rows * states for rows, states in self.shapes)

    def made(self) -> Tensor:
        """Which tokens are made of patches, (N,), bool."""
        return torch.bincount(self.token, minlength=self.count) > 0

    def mean(self, values: Tensor) -> Tensor:
        """Means over the patches of each token: (..., P) to (..., N), float32; 0 where a token has none."""
        patch, token, weight = (each.to(values.device) for each in (self.patch, self.token, self.weight))
        found = values.new_zeros(*values.shape[:-1], self.count, dtype=torch.float32)
        return found.index_add_(-1, token, values.index_select(-1, patch).float() * weight)

    def rows(self) -> Tensor:
        """The row of the tower's batch (picture or tile) that each token comes from, (N,); -1 for none."""
        of_patch = torch.cat([torch.arange(rows).repeat_interleave(states) for rows, states in self.shapes])
        starts = torch.cat([torch.full((rows * states,), before) for before, rows, states in self._counted()])
        found = torch.full((self.count,), -1)
        found[self.token] = (of_patch + starts)[self.patch]
        return found

    def _counted(self) -> Iterator[tuple[int, int, int]]:
        before = 0
        for rows, states in self.shapes:
            yield before, rows, states
            before += rows

    def owners(self, cells: Sequence[Tensor]) -> Tensor:
        """The unit (of `cells`, (n, 3) each) that each patch makes a token of, (P,), int64; -1 for none."""
        units = torch.cat([torch.full((len(unit),), number) for number, unit in enumerate(cells)])
        found = torch.full((self.patches,), -1)
        found[self.patch] = units[self.token]
        return found

    def class_place(self, placed: Tensor) -> int | None:
        """The place in every row, first (0) or last (-1), that makes no token on a grid (`placed`, (N,) bool)."""
        makes = torch.zeros(self.patches, dtype=torch.bool)
        makes[self.patch[placed[self.token]]] = True
        parts = makes.split([rows * states for rows, states in self.shapes])
        lines = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        for place in (0, -1):
            if all(line.shape[1] > 1 and not bool(line[:, place].any()) for line in lines):
                return place
        return None


def measure(
    run: Callable[[], Any], features: Callable[[Any], Tensor], layers: list[nn.Module], tuples: bool, cells: Tensor
) -> dict[int, Origins]:
    """By layer from which on it holds, which patches each token is made of.

    Parameters
    ----------
    run : callable
        Encodes.
    features : callable
        From what that gives to the features, (N, D).
    layers : list of nn.Module
        Those of the tower.
    tuples : bool
        Whether they return their states in a tuple.
    cells : Tensor, (N, 3)
        As `Family.cells` has them.

    Raises
    ------
    Unclear
        Patches reach tokens in a way that leaves it open which is made of which, or gradients cannot be had.
    """
    try:
        return _measure(run, features, layers, tuples, cells)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:  # kernels and weights that have no gradients
        raise Unclear(f"no gradients can be had of its encoder ({first_line(error)})") from error


def _measure(
    run: Callable[[], Any], features: Callable[[Any], Tensor], layers: list[nn.Module], tuples: bool, cells: Tensor
) -> dict[int, Origins]:
    for alike in (False, True):
        leaves = _Leaves(alike)
        with torch.inference_mode(False), torch.enable_grad(), _passing(layers, leaves.put, tuples):
            made = features(run())
            if made.shape[0] != len(cells):
                raise Unclear(f"its encoder gave {made.shape[0]} features for {len(cells)} visual tokens")
            colours = _colours(cells) if alike else torch.zeros(len(cells), dtype=torch.int64)
            found = {start: _pairs(made, parts, colours) for start, parts in leaves.found.items()}
        if found and all(pairs is not None for pairs in found.values()):
            origins = {start: _origins(pairs, leaves.found[start], len(cells)) for start, pairs in found.items()}
            if all(bool(each.made()[cells[:, 0] >= 0].all()) for each in origins.values()):
                return origins
    raise Unclear("it cannot be told which patches its visual tokens are made of")


class _Leaves:
    """What gradients are taken of: zeros that are added to states where these enter, and where their number changes.

    Parameters
    ----------
    alike : bool
        Whether all patches are to have the same state, so that the strengths of gradients compare.
    """

    def __init__(self, alike: bool) -> None:
        self.found: dict[int, list[Tensor]] = {}
        self._alike, self._shape = alike, torch.Size()

    def put(self, number: int, states: Tensor) -> Tensor:
        """What the layer with this number hands on."""
        if number and states.shape == self._shape:
            return states
        self._shape = states.shape
        if self._alike and not number:
            states = states.detach().flatten(0, -2)[-1].expand(states.shape)
        leaf = torch.zeros_like(states, requires_grad=True)
        self.found.setdefault(number, []).append(leaf)
        return states.detach() + leaf if not number else states + leaf


@contextmanager
def _passing(layers: list[nn.Module], put: Callable[[int, Tensor], Tensor], tuples: bool) -> Iterator[None]:
    """While this is open, layers compute nothing, and hand on what `put` makes of what they are handed."""

    def straight(number: int, layer: nn.Module) -> Callable[..., Any]:
        first = parameters(layer)[0]

        def forward(*args: Any, **kwargs: Any) -> Any:
            states = put(number, args[0] if args else kwargs[first])
            return (states, None) if tuples else states

        return forward

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.callback(method(layer, "forward", straight(number, layer)).remove)
        yield


def _colours(cells: Tensor) -> Tensor:
    """Numbers that are different for tokens which may share a patch, (N,)."""
    return torch.where(cells[:, 0] < 0, AROUND * AROUND, cells[:, 1] % AROUND * AROUND + cells[:, 2] % AROUND)


def _pairs(features: Tensor, leaves: list[Tensor], colours: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Patches, tokens and strengths, (E,) each; None if a patch reaches several tokens of one colour."""
    count, width = features.shape
    fine = features.dtype.itemsize > 2
    base, close = BASE[fine], CLOSE[fine]
    direction = torch.cos(torch.arange(width, device=features.device) * 1.7 + 0.3)

    def back(code: Tensor) -> Tensor:
        lines = (code.to(features.device)[:, None] * direction).to(features.dtype)
        found = torch.autograd.grad(features, leaves, lines, retain_graph=True, allow_unused=True)
        flat = [torch.zeros_like(leaf) if each is None else each for each, leaf in zip(found, leaves, strict=True)]
        return torch.cat([each.flatten(0, -2) for each in flat]).float().cpu()

    parts = []
    for colour in torch.unique(colours):
        mine = (colours == colour).float()
        whole = back(mine)
        strength = whole.norm(dim=1)
        reached = strength > FAINT * strength.max()
        token = torch.zeros(len(whole), dtype=torch.int64)
        place = 1
        while place < count:
            digits = torch.arange(count) // place % base
            part = back(digits * mine)
            digit = ((part * whole).sum(dim=1) / (whole * whole).sum(dim=1).clamp_min(1e-30)).round()
            off = (part - digit[:, None] * whole).norm(dim=1) > close * strength
            if bool((off & reached).any()) or not bool(((digit >= 0) & (digit < base))[reached].all()):
                return None
            token += digit.long() * place
            place *= base
        parts.append((reached.nonzero()[:, 0], token[reached], strength[reached]))
    patch, token, strength = (torch.cat(each) for each in zip(*parts, strict=True))
    if bool((token >= count).any()):
        return None
    return patch, token, strength if len(parts) > 1 else torch.ones_like(strength)


def _origins(pairs: tuple[Tensor, Tensor, Tensor] | None, leaves: list[Tensor], count: int) -> Origins:
    assert pairs is not None
    patch, token, strength = pairs
    total = torch.zeros(count).index_add_(0, token, strength)
    shapes = [(leaf.shape[:-1].numel() // leaf.shape[-2], leaf.shape[-2]) for leaf in leaves]
    return Origins(patch, token, strength / total[token], count, shapes)
