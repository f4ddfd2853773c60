"""Notes where the tokens of pictures and videos lie, which forwards no longer show.

`generate()` encodes before its first forward and hands on the features alone, so the geometry (image sizes, grids) is
read here. It travels as an attribute of the features, and with the call of `generate()` for where those are copied on
their way. Features that a caller puts among embeddings by hand are recognised by `adaptprune.hooks.locate`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError
from adaptprune.families import Family
from adaptprune.hooks.holds import Hold, method
from adaptprune.hooks.locate import Noted
from adaptprune.hooks.running import Running
from adaptprune.hooks.seams import calls, parts
from adaptprune.hooks.seams.versions import misfit
from adaptprune.hooks.sharing import ANEW
from adaptprune.hooks.tower import Tower, again, fingerprint

#: Attribute of encoded features that holds their `Family.cells`.
CELLS = "_adaptprune_cells"


def watch(
    base: nn.Module,
    family: Family,
    running: Running,
    noted: Noted,
    alive: Callable[[], bool],
    tower: Tower | None = None,
) -> list[Hold]:
    """Note the cells of everything that `base` encodes, as long as the model is pruned (`alive`).

    Parameters
    ----------
    tower : Tower, optional
        What is to be seen of the vision tower meanwhile.
    """
    methods = parts.ENCODERS.items()
    return [
        _wrap(base, modality, name, family, running, noted, alive, tower)
        for modality, name in methods
        if hasattr(base, name)
    ]


def _wrap(
    base: nn.Module,
    modality: str,
    name: str,
    family: Family,
    running: Running,
    noted: Noted,
    alive: Callable[[], bool],
    tower: Tower | None,
) -> Hold:
    encode = getattr(base, name)

    @functools.wraps(encode)  # generate() picks the arguments by the signature
    def noting(*args: Any, **kwargs: Any) -> Any:
        if not alive() or running.encoding:  # videos are encoded by the images' method
            return encode(*args, **kwargs)
        if running.encoded is not None and not calls.runs(base):
            running.forget()
        running.encoding = True
        try:
            encoded, taken = _encode(encode, args, kwargs, tower)
        finally:
            running.encoding = False
        if isinstance(encoded, tuple):  # return_dict=False, by hand: what is done with it is seen when it is read
            return encoded
        features = parts.features_of(encoded)
        inputs = calls.bound(encode, args, kwargs)
        named = {parts.PICTURES[modality]: next(iter(inputs.values())), **inputs}
        cells = family.cells(base, modality, named, features)
        cells = getattr(encoded, CELLS, None) or cells  # of an output that was kept, with what was seen of it
        if tower is not None and taken is not None:
            running.encoding = True
            try:
                cells = tower.note(
                    taken, partial(again, base, name, inputs), fingerprint(name, inputs), features, cells
                )
            finally:
                running.encoding = False
        setattr(encoded, CELLS, cells)
        if running.encoded is not None:
            running.encoded[modality] = cells
            return encoded
        noted.add(features, cells)
        if running.generating is not None and not running.generating.forwards:  # else somebody's own, inside of it
            running.generating.cells[modality] = cells
        return encoded

    return method(base, name, noting)


def _encode(encode: Callable[..., Any], args: Any, kwargs: Any, tower: Tower | None) -> tuple[Any, Any]:
    """What an encode method returns, and what was seen of the tower meanwhile; None if it did not run."""
    if tower is None:
        return encode(*args, **kwargs), None
    encoded, taken = tower.during(lambda: encode(*args, **kwargs))
    anew = getattr(encode, ANEW, None)
    before = getattr(encoded, CELLS, None)
    if taken is None and anew is not None and not tower.known(before):  # it was kept from before
        encoded, taken = tower.during(lambda: anew(*args, **kwargs))
        if before is not None:
            setattr(encoded, CELLS, before)
    return encoded, taken


def cells_of(base: nn.Module, family: Family, given: Any, running: Running) -> dict[str, list[Tensor]]:
    """The cells of features that came ready with the arguments of a forward."""
    if given is None:
        return {}
    if not parts.takes_ready(base):  # it would be handed on, and ignored
        raise misfit(f"the argument {parts.READY}", f"{type(base).__name__} does not take it: pass the pictures")
    if not isinstance(given, Mapping):
        raise AdaptPruneError(f"{parts.READY} has to be a dict of 'image' and 'video' to be pruned.")
    found, ahead = {}, running.mine.cells if running.mine is not None else {}
    for modality in parts.ENCODERS:
        if (encoded := given.get(modality)) is not None:
            cells = getattr(encoded, CELLS, None) or ahead.get(modality)
            found[modality] = (
                cells
                if cells is not None
                else family.cells(base, modality, running.inputs or {}, parts.features_of(encoded))
            )
    return found
