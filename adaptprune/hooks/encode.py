"""Notes where the tokens of pictures and videos lie at the moment when a model encodes them.

`generate()` encodes before its first forward and hands on the features alone, so the geometry (image sizes, grids) is
read here and travels as an attribute of the features.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError
from adaptprune.families import ENCODERS, Family

#: Attribute of encoded features that holds their `Family.cells`.
CELLS = "_adaptprune_cells"


def watch(base: nn.Module, family: Family, calls: Any) -> list[Callable[[], None]]:
    """Note the cells of everything that `base` encodes; returns the functions that end it.

    Parameters
    ----------
    calls : threading.local
        Its `encoded` is a dict by modality while a forward of `base` is under way.
    """
    return [_wrap(base, modality, name, family, calls) for modality, name in ENCODERS.items() if hasattr(base, name)]


def _wrap(base: nn.Module, modality: str, name: str, family: Family, calls: Any) -> Callable[[], None]:
    encode = getattr(base, name)
    signature = inspect.signature(encode)

    @functools.wraps(encode)  # generate() picks the arguments by the signature
    def noting(*args: Any, **kwargs: Any) -> Any:
        if getattr(calls, "encoding", False):  # videos are encoded by the images' method
            return encode(*args, **kwargs)
        calls.encoding = True
        try:
            features = encode(*args, **kwargs)
        finally:
            calls.encoding = False
        cells = family.cells(base, modality, signature.bind_partial(*args, **kwargs).arguments, features)
        setattr(features, CELLS, cells)
        if getattr(calls, "encoded", None) is not None:
            calls.encoded[modality] = cells
        return features

    object.__setattr__(base, name, noting)

    def remove() -> None:
        if base.__dict__.get(name) is noting:
            object.__delattr__(base, name)

    return remove


def cells_of(base: nn.Module, family: Family, given: Any) -> dict[str, list[Tensor]]:
    """The cells of features that came ready with the arguments of a forward (`mm_encoder_outputs`)."""
    if not isinstance(given, Mapping):
        if given is None:
            return {}
        raise AdaptPruneError("mm_encoder_outputs has to be a dict of 'image' and 'video' to be pruned.")
    found = {}
    for modality in ENCODERS:
        if (features := given.get(modality)) is not None:
            cells = getattr(features, CELLS, None)
            found[modality] = cells if cells is not None else family.cells(base, modality, {}, features)
    return found
