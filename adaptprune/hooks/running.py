"""What is under way on one model, per thread: a `generate()`, a forward of the base, one of the decoder.

Nothing here outlives the call that it belongs to. What a sequence has been through is kept with its KV cache
(`adaptprune.hooks.state`), so that a second prompt read inside `generate()` is a sequence of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
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
    handed : tuple of Tensor
        What the forward that it is about to run reads. A forward that reads something else is somebody else's: that of
        a logits processor, say.
    forwards : int
        How many of its own forwards were seen.
    told : dict or None
        The report of its prompt.
    """

    prompt: int | None = None
    pictures: bool = False
    cells: dict[str, list[Tensor]] = field(default_factory=dict)
    handed: tuple[Tensor, ...] = ()
    forwards: int = 0
    told: dict[str, Any] | None = None

    def owns(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a forward with these arguments is its own."""
        read = calls.prompt_of(inputs)
        return any(read is each for each in self.handed)


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
    """

    generating: Generating | None = None
    own: bool = False
    inputs: dict[str, Any] | None = None
    encoded: dict[str, list[Tensor]] | None = None
    call: Call | None = None
    full: bool = False
    encoding: bool = False

    @property
    def mine(self) -> Generating | None:
        """The `generate()` that the forward under way belongs to; None if it stands alone."""
        return self.generating if self.own else None


def watch_generate(
    model: nn.Module, base: nn.Module, running: Running, ended: Callable[[Generating], None]
) -> list[Hold]:
    """Note what `generate()` is given and which forwards are its own.

    Parameters
    ----------
    ended : callable
        Is told of the `generate()` in which another one of this model has ended.
    """
    if not hasattr(model, "generate"):
        return []
    generate: Any = model.generate
    held: list[Hold] = []

    @functools.wraps(generate)
    def noting(*args: Any, **kwargs: Any) -> Any:
        given = calls.bound(generate, args, kwargs)
        read, pictures = calls.prompt_of(given), parts.shows_pictures(base, given)
        outer, running.generating = running.generating, Generating(None if read is None else read.shape[1], pictures)
        own, running.own = running.own, False
        held.extend(_watch_prepare(model, running))
        try:
            output = generate(*args, **kwargs)
            if not running.generating.forwards:
                raise misfit("generate()'s forwards", f"none of them read what {calls.PREPARE} had prepared")
            return output
        finally:
            running.generating, running.own = outer, own
            if outer is not None:
                ended(outer)

    def remove() -> None:
        while held:
            held.pop().remove()

    first = method(model, "generate", noting)
    held.extend([first, *_watch_prepare(model, running)])
    return [Hold(first.what, remove, first.intact)]


def _watch_prepare(model: nn.Module, running: Running) -> list[Hold]:
    """Note what `generate()` is about to read; again if PEFT has put its own method in the place meanwhile."""
    prepare: Any = getattr(model, calls.PREPARE)
    if getattr(prepare, "adaptprune_running", None) is running:
        return []

    @functools.wraps(prepare)
    def noting(*args: Any, **kwargs: Any) -> Any:
        inputs = prepare(*args, **kwargs)
        if running.generating is not None:
            running.generating.handed = tuple(
                inputs[name] for name in (calls.IDS, calls.EMBEDS) if isinstance(inputs.get(name), Tensor)
            )
        elif calls.within_generate():
            raise broken("generate() was called on the class, past what was put in front of the model's own")
        return inputs

    noting.adaptprune_running = running  # type: ignore[attr-defined]
    return [method(model, calls.PREPARE, noting, guarded=False)]
