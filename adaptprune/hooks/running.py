"""What is under way on one model, per thread: a `generate()`, a forward of the base, one of the decoder.

Nothing here outlives the call that it belongs to. What a sequence has been through is kept with its KV cache
(`adaptprune.hooks.state`), so that a second prompt read inside `generate()` is a sequence of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import local
from typing import Any

from torch import Tensor, nn

from adaptprune.hooks.holds import Hold, broken, method
from adaptprune.hooks.seams import calls, parts
from adaptprune.hooks.seams.versions import misfit
from adaptprune.hooks.state import Call


@dataclass
class Generating:
    """One `generate()`.

    Attributes
    ----------
    prompt : int or None
        Positions of the prompt that it was given.
    pictures : bool
        Whether it was given pictures, videos or features.
    cells : dict
        Cells of what it encoded ahead, by modality, for where features are copied on their way (accelerate does so
        between devices).
    prepared : bool
        Whether it has the arguments of a forward ready, which is then the next one to run. Any other forward is
        somebody else's: that of a logits processor, say.
    forwards : int
        How many forwards of its own it has run.
    told : dict or None
        The report of its prompt.
    """

    prompt: int | None = None
    pictures: bool = False
    cells: dict[str, list[Tensor]] = field(default_factory=dict)
    prepared: bool = False
    forwards: int = 0
    told: dict[str, Any] | None = None

    def takes(self) -> bool:
        """Whether the forward that begins now is its own."""
        own, self.prepared = self.prepared, False
        self.forwards += own
        return own


class Running(local):
    """One thread's view; every thread begins with the values below.

    Attributes
    ----------
    generating : Generating or None
        The innermost `generate()`.
    own : bool
        Whether the forward of the model under way is `generate()`'s.
    inputs : dict or None
        Arguments of the base's forward under way.
    encoded : dict or None
        Cells of what it has encoded, by modality.
    call : Call or None
        The decoder's forward under way.
    full : bool
        Whether the model's forward under way wants an output for every token of the unpruned prompt.
    encoding : bool
        Whether an encode method runs (some call one another).

    An interrupt (Ctrl-C) leaves them as they are, so whoever reads them looks first whether the call is still running.
    """

    generating: Generating | None = None
    own: bool = False
    inputs: dict[str, Any] | None = None
    encoded: dict[str, list[Tensor]] | None = None
    call: Call | None = None
    full: bool = False
    encoding: bool = False

    def forget(self) -> None:
        """No forward is under way."""
        self.own = self.full = self.encoding = False
        self.inputs = self.encoded = self.call = None

    @property
    def mine(self) -> Generating | None:
        """The `generate()` that the forward under way belongs to; None if it stands alone."""
        return self.generating if self.own else None


def watch_generate(
    model: nn.Module, base: nn.Module, running: Running, ended: Callable[[Generating], None], alive: Callable[[], bool]
) -> list[Hold]:
    """Note what `generate()` is given and which forwards are its own.

    Parameters
    ----------
    ended : callable
        Is told of the `generate()` in which another one of this model has ended.
    alive : callable
        Whether the model is still pruned; somebody may hold on to what was put on it for longer.
    """
    if not hasattr(model, "generate"):
        return []
    generate: Any = model.generate

    @functools.wraps(generate)
    def noting(*args: Any, **kwargs: Any) -> Any:
        if not alive():
            return generate(*args, **kwargs)
        given = calls.bound(generate, args, kwargs)
        read, pictures = calls.prompt_of(given), parts.shows_pictures(base, given)
        outer, running.generating = running.generating, Generating(None if read is None else read.shape[1], pictures)
        own, running.own = running.own, False
        again = _watch_prepare(model, running, alive)  # PEFT puts its own method in the place, for every generate()
        try:
            output = generate(*args, **kwargs)
            if not running.generating.forwards and calls.is_stock(model, given):
                raise misfit("generate()'s forwards", f"it did not ask {calls.PREPARE} for their arguments")
            return output
        finally:
            running.generating, running.own = outer, own
            for hold in again:
                hold.remove()
            if outer is not None:
                ended(outer)

    return [method(model, "generate", noting), *_watch_prepare(model, running, alive)]


def _watch_prepare(model: nn.Module, running: Running, alive: Callable[[], bool]) -> list[Hold]:
    """Note when `generate()` has prepared a forward; nothing if that is noted already."""
    prepare: Any = getattr(model, calls.PREPARE)
    if getattr(prepare, "adaptprune_running", None) is running:
        return []

    @functools.wraps(prepare)
    def noting(*args: Any, **kwargs: Any) -> Any:
        inputs = prepare(*args, **kwargs)
        if not alive():
            return inputs
        if running.generating is not None:
            running.generating.prepared = True
        elif calls.within_generate(model):
            raise broken(
                "generate() is not the one that was put on the model: it was called on the class, looked up before the "
                "model was pruned, or is still running from then; call model.generate(...)"
            )
        return inputs

    noting.adaptprune_running = running  # type: ignore[attr-defined]
    return [method(model, calls.PREPARE, noting)]
