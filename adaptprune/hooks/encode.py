"""Notes what forwards no longer show: where the tokens of pictures and videos lie, and how long a prompt is.

`generate()` encodes before its first forward and hands on the features alone, so the geometry (image sizes, grids) is
read here. It travels as an attribute of the features, and with the call of `generate()` for where those are copied on
their way (accelerate does so between devices).
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
        Its `encoded` and `generating` are dicts by modality while a forward of `base` or `generate()` is under way.
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
        for place in ("encoded", "generating"):
            if getattr(calls, place, None) is not None:
                getattr(calls, place)[modality] = cells
        return features

    return _replace(base, name, noting)


def note_prompts(model: nn.Module, calls: Any) -> list[Callable[[], None]]:
    """Note how long the prompt is that `generate()` is given; returns the functions that end it.

    Assisted decoding reads it together with a draft's first guesses, which are no part of the question.
    """
    generate = getattr(model, "generate", None)
    if generate is None:
        return []
    signature = inspect.signature(generate)

    @functools.wraps(generate)
    def noting(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        prompts = (given.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))
        outer = getattr(calls, "generating", None)
        calls.generating = {"prompt": next((each.shape[1] for each in prompts if isinstance(each, Tensor)), None)}
        try:
            return generate(*args, **kwargs)
        finally:
            calls.generating = outer

    return [_replace(model, "generate", noting)]


def _replace(module: nn.Module, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Put a function in front of a method, on this one object."""
    object.__setattr__(module, name, function)

    def remove() -> None:
        if module.__dict__.get(name) is function:
            object.__delattr__(module, name)

    return remove


def cells_of(base: nn.Module, family: Family, given: Any, calls: Any) -> dict[str, list[Tensor]]:
    """The cells of features that came ready with the arguments of a forward (`mm_encoder_outputs`)."""
    if not isinstance(given, Mapping):
        if given is None:
            return {}
        raise AdaptPruneError("mm_encoder_outputs has to be a dict of 'image' and 'video' to be pruned.")
    found = {}
    for modality in ENCODERS:
        if (features := given.get(modality)) is not None:
            cells = getattr(features, CELLS, None) or (getattr(calls, "generating", None) or {}).get(modality)
            found[modality] = cells if cells is not None else family.cells(base, modality, {}, features)
    return found
