"""What is put on a model while it is pruned: how each piece comes off again, and whether it is still there.

Somebody may take hooks off, put a method of their own over ours, or exchange a layer, while a model is pruned. That is
found out before every forward, by looking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams.versions import installed, window


def broken(fact: str) -> AdaptPruneError:
    """The error for a forward in which the hooks did not do what they are there for."""
    return AdaptPruneError(
        f"pruning went wrong and its answer is withheld: {fact}. adaptprune is tested with transformers {window()}, "
        f"{installed()} is installed; run `adaptprune doctor`, and remove what else changes the model's hooks or its "
        "forwards."
    )


@dataclass(frozen=True)
class Hold:
    """One piece on a model.

    Attributes
    ----------
    what : str
        As an error calls it.
    remove : callable
        Takes it off; harmless if it is gone.
    intact : callable
        Whether it is still there.
    """

    what: str
    remove: Callable[[], None]
    intact: Callable[[], bool]


def hook(module: nn.Module, what: str, before: Any = None, after: Any = None) -> list[Hold]:
    """Put hooks on a module, before and after its forward."""
    held = []
    # disabled: a compiled layer must not trace what depends on the prompt
    if before is not None:
        handle = module.register_forward_pre_hook(torch.compiler.disable(before), with_kwargs=True)
        held.append(_hold(f"the hook before {what}", handle, module._forward_pre_hooks))
    if after is not None:
        # always_call: also after an exception, so that no forward's state outlives it
        handle = module.register_forward_hook(torch.compiler.disable(after), always_call=True)
        held.append(_hold(f"the hook after {what}", handle, module._forward_hooks))
    return held


def _hold(what: str, handle: Any, hooks: Any) -> Hold:
    number = handle.id
    return Hold(what, handle.remove, lambda: number in hooks)


def method(module: nn.Module, name: str, function: Callable[..., Any]) -> Hold:
    """Put a function in front of a method, on this one object; what was there before is put back at the end.

    Somebody may put theirs over it, which then calls it; whether it was called is found out by what comes of it.
    """
    own = module.__dict__
    before = own.get(name)
    object.__setattr__(module, name, function)

    def remove() -> None:
        if own.get(name) is not function:
            return  # somebody else put theirs over it, and takes it off
        if before is None:
            object.__delattr__(module, name)
        else:
            object.__setattr__(module, name, before)

    return Hold(f"what was put in front of {name}", remove, lambda: name in own)


def same_layers(decoder: Any, layers: Sequence[nn.Module]) -> Hold:
    """Nothing is put on for it: the decoder's layers have to stay the ones that have hooks, in their order."""

    def same() -> bool:
        now = decoder.layers
        return len(now) == len(layers) and all(a is b for a, b in zip(now, layers, strict=True))

    return Hold("the list of the decoder's layers", lambda: None, same)


def check(held: Sequence[Hold]) -> None:
    """Raise AdaptPruneError if a piece is gone."""
    for each in held:
        if not each.intact():
            raise broken(f"{each.what} was changed or taken away while the model is pruned")
