"""The module that turns a tower's states into features: found while pictures are encoded, by what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import local
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptprune.hooks.holds import Hold, hook
from adaptprune.hooks.origins import Unclear
from adaptprune.hooks.seams import towers
from adaptprune.hooks.seams.parts import Parts
from adaptprune.hooks.seams.towers import Stack

#: How far features may be from what the projector makes of the same input by itself, by whether numbers have 32 bits.
CLOSE = {True: 1e-4, False: 3e-2}


#: Parts of paths: of what makes one state of all patches, beside what is projected.
POOLING = ("head", "pool")


class _Ran(NamedTuple):
    """One run of a module: its only input (None: it has several), its output, and how many runs had begun by then."""

    path: str
    module: nn.Module
    given: Any
    made: Any
    began: int
    ended: int


class _Local(local):
    began: list[tuple[int, Any]]
    ran: list[_Ran] | None = None
    count: int = 0


class Projector:
    """Looks for the projector of a model.

    Parameters
    ----------
    found : Parts
    stacks : list of Stack
        Its towers.
    """

    def __init__(self, found: Parts, stacks: list[Stack]) -> None:
        self._modules = dict(pair for stack in stacks for pair in towers.behind(found, stack))
        self._layers = [stack.layers[-1] for stack in stacks]
        self._thread = _Local()

    def watch(self) -> list[Hold]:
        """Start to look at the modules behind the tower."""
        held: list[Hold] = []
        for path, module in self._modules.items():
            held += hook(module, f"{path}", self._begin, partial(self._end, path))
        for layer in self._layers:
            held += hook(layer, "the tower's last layer", after=self._clear)
        return held

    def begin(self) -> None:
        """An encode method begins."""
        self._thread.ran, self._thread.began, self._thread.count = [], [], 0

    def end(self) -> list[_Ran]:
        """It has ended: everything that ran behind the tower."""
        ran, self._thread.ran = self._thread.ran, None
        return ran or []

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._thread.ran is not None:
            given = [value for value in (*args, *kwargs.values()) if value is not None]
            self._thread.began.append((self._thread.count, given[0] if len(given) == 1 else None))
            self._thread.count += 1

    def _end(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        thread = self._thread
        if thread.ran is not None and thread.began:
            began, given = thread.began.pop()
            thread.ran.append(_Ran(path, module, given, output, began, thread.count))

    def _clear(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._thread.ran is not None:
            self._thread.ran.clear()  # what ran before the tower's end; what is still open stays open

    def of(self, ran: Sequence[_Ran], features: Tensor, placed: Tensor) -> dict[str, Any]:
        """What the projector was handed for each token, (N, g, Di), and what computes features (N, D) from such.

        Parameters
        ----------
        ran : sequence
            What `end` gave.
        features : Tensor, (N, D)
        placed : Tensor, (N,), bool
            The tokens that it has to give again; 0 is the input of the others.

        Raises
        ------
        Unclear
            No module does.
        """
        for group in _grouped(ran):
            fits = _fit(group, features, placed)
            if fits is not None and not _worked_before(ran, group):
                return fits
        raise Unclear(towers.NO_PROJECTOR)


def _grouped(ran: Sequence[_Ran]) -> list[list[_Ran]]:
    """All runs of each module, those first that began first (and so hold the others)."""
    groups: dict[str, list[_Ran]] = {}
    for each in sorted(ran, key=lambda each: each.began):
        groups.setdefault(each.path, []).append(each)
    return list(groups.values())


def _worked_before(ran: Sequence[_Ran], group: Sequence[_Ran]) -> bool:
    """Whether weights behind the tower, other than a norm's, took part before a module began."""
    began, path = group[0].began, group[0].path
    return any(
        each.ended <= began
        and not list(each.module.children())
        and not each.path.startswith(f"{path}.")
        and "norm" not in type(each.module).__name__.lower()
        and not any(word in each.path for word in POOLING)
        for each in ran
    )


def _fit(group: Sequence[_Ran], features: Tensor, placed: Tensor) -> dict[str, Any] | None:
    """A module's inputs by token, if its outputs are the features and it makes them token by token."""
    inputs, outputs = [], []
    for each in group:
        given, made = each.given, each.made
        if not isinstance(given, Tensor) or not isinstance(made, Tensor) or made.shape[-1] != features.shape[-1]:
            return None
        count = made.shape[:-1].numel()
        if not count or given.shape[:-1].numel() % count or not given.is_floating_point():
            return None
        inputs.append(given.detach().reshape(count, -1, given.shape[-1]))
        outputs.append(made.detach().reshape(count, -1))
    if len({each.shape[1:] for each in inputs}) != 1:
        return None
    index = _found(features, torch.cat(outputs), placed)
    if index is None:
        return None
    given = torch.cat(inputs)[index.clamp_min(0)].masked_fill((index < 0)[:, None, None], 0)
    project = _by_token(group[0])
    real = placed.to(features.device)
    try:
        again = project(given[real]).float()
    except Exception:  # whatever a module says that does not take its input token by token
        return None
    wanted = features[real].float()
    if again.shape != wanted.shape or bool(
        (again - wanted).abs().max() > CLOSE[features.dtype.itemsize > 2] * wanted.abs().max()
    ):
        return None
    return {"input": given, "project": project}


def _found(features: Tensor, made: Tensor, placed: Tensor) -> Tensor | None:
    """Of each feature, the row of what was made that it is, (N,); None if one is none. -1 for those not `placed`."""
    rows = made.to(features.dtype)
    _, names = torch.unique(torch.cat([rows, features.detach()]), dim=0, return_inverse=True)
    first = torch.full((int(names.max()) + 1,), -1, device=names.device)
    first[names[: len(rows)].flip(0)] = torch.arange(len(rows) - 1, -1, -1, device=names.device)
    index = first[names[len(rows) :]].masked_fill(~placed.to(names.device), -1)
    return None if bool((index[placed.to(index.device)] < 0).any()) else index


def _by_token(run: _Ran) -> Callable[[Tensor], Tensor]:
    """The module, from (N, g, Di) to (N, D), called in the form in which its model calls it."""
    module, axes = run.module, run.given.ndim
    apart = axes == 3 and run.made.ndim == 2  # it is handed the patches of each token by themselves

    def project(states: Tensor) -> Tensor:
        count, patches, width = states.shape
        lines = states if apart else states.reshape(*[1] * (axes - 2), count * patches, width)
        out: Tensor = module(lines)
        return out.reshape(count, -1)

    return project
