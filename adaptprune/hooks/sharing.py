"""Pictures that are shown in several prompts go through the vision tower once: its output is kept, and used again.

The model's own encode calls are looked after, whatever they return, so that this works for every family: what one call
gave for the pictures of a prompt is handed to the same call for the same pictures. No tested family runs its tower
outside of these calls (tests/test_front_ends.py counts).
"""

from __future__ import annotations

import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from adaptprune.devices import synchronize
from adaptprune.hooks.holds import Hold, method
from adaptprune.hooks.seams import parts

#: Attribute of an encode method that is looked after: encodes although it is remembered what that gave, and remembers
#: this in its place.
ANEW = "adaptprune_anew"


@dataclass
class _Entry:
    """What the encode calls of one prompt gave, in their order, and how long they took together."""

    pictures: Sequence[Any]  # kept, so that no other object takes their identity
    outputs: list[Any] = field(default_factory=list)
    milliseconds: float = 0.0


class Encoded:
    """What a model made of pictures. Used from one thread.

    Parameters
    ----------
    model : nn.Module
    base : nn.Module
        The part of it that encodes.
    limit : int
        Prompts' pictures that are remembered; the least recently used leave.
    """

    def __init__(self, model: Any, base: nn.Module, limit: int) -> None:
        self._model, self._limit = model, limit
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._entry: _Entry | None = None
        self._calls = 0
        self._options: dict[str, Any] = {}
        self._held: list[Hold] = [
            method(base, name, self._wrap(getattr(base, name)))
            for name in parts.ENCODERS.values()
            if hasattr(base, name)
        ]

    @contextmanager
    def of(self, pictures: Sequence[Any], read: Hashable = (), **options: Any) -> Iterator[Callable[[], float]]:
        """While one prompt with these pictures is read: encode them, or use what they gave before.

        Parameters
        ----------
        pictures : sequence
            The objects themselves: the same ones again are taken for the same pictures.
        read : hashable
            How the processor read them (at which size, say).
        **options
            Handed to the encode calls; other options are other outputs.

        Yields
        ------
        callable
            The milliseconds that encoding took for this prompt; 0 where only what was kept is used.
        """
        key = (read, *map(id, pictures), *sorted((name, repr(value)) for name, value in options.items()))
        entry = self._entries.pop(key, None) or _Entry(pictures)
        self._entries[key] = entry
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)
        self._entry, self._calls, self._options = entry, 0, options
        before = entry.milliseconds
        try:
            yield lambda: entry.milliseconds - before
        except BaseException:
            self._entries.pop(key, None)  # some calls may be missing
            raise
        finally:
            self._entry = None

    def _wrap(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        def encoded(entry: _Entry, args: Any, kwargs: Any) -> Any:
            start = time.perf_counter()
            self._entry = None  # what it calls in turn is part of it: some encode videos by the images' method
            try:
                made = encode(*args, **{**kwargs, **self._options})
            finally:
                self._entry = entry
            synchronize(self._model.device)
            entry.milliseconds += 1000 * (time.perf_counter() - start)
            return made

        @functools.wraps(encode)  # its signature is looked at
        def shared(*args: Any, **kwargs: Any) -> Any:
            entry = self._entry
            if entry is None:
                return encode(*args, **kwargs)
            if self._calls == len(entry.outputs):
                entry.outputs.append(encoded(entry, args, kwargs))
            self._calls += 1
            return entry.outputs[self._calls - 1]

        def anew(*args: Any, **kwargs: Any) -> Any:
            entry = self._entry
            if entry is None or not self._calls:
                return encode(*args, **kwargs)
            entry.outputs[self._calls - 1] = made = encoded(entry, args, kwargs)
            return made

        setattr(shared, ANEW, anew)
        return shared

    def forget(self) -> None:
        """Drop everything that is remembered."""
        self._entries.clear()

    def close(self) -> None:
        """Let go of the model."""
        self.forget()
        for hold in reversed(self._held):
            hold.remove()
