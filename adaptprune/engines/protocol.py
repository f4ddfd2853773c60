"""What an engine is: it is handed a conversation and answers its last turn. Front ends know engines, and no models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from adaptprune.checks import whole
from adaptprune.engines.sampling import Sampling
from adaptprune.errors import AdaptPruneError
from adaptprune.methods import make_pruner
from adaptprune.prompts import Turn
from adaptprune.pruner import Pruner
from adaptprune.report import PruneReport

#: What an engine may be able to do, besides answering.
KEPT_CACHE, BATCHING, PICTURES = "kept cache", "batching", "overlays"
NONE = "none"


@dataclass(frozen=True)
class Pruning:
    """Which visual tokens stay.

    Attributes
    ----------
    method : str, Pruner or None
        A name, a spec or a rule; "none" is unpruned. The engine's own default if None.
    keep_ratio, num_keep, layer
        Override the method's own.
    reselect : bool
        For engines with a kept cache: choose anew among all visual tokens of the conversation at every question.
    """

    method: str | Pruner | None = None
    keep_ratio: float | None = None
    num_keep: int | None = None
    layer: int | None = None
    reselect: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """What is overridden."""
        given = {"keep_ratio": self.keep_ratio, "num_keep": self.num_keep, "layer": self.layer}
        return {name: value for name, value in given.items() if value is not None}

    def pruner(self, default: str | Pruner | None = None) -> Pruner | None:
        """The rule; None runs unpruned.

        Raises
        ------
        AdaptPruneError
            There is no such method, or it has no such option.
        """
        method = default if self.method is None else self.method
        if method is not None and method != NONE:
            return make_pruner(method, **self.options)
        self._check_unpruned()
        return None

    def _check_unpruned(self) -> None:
        if self.options:
            raise AdaptPruneError(f"without a method there is nothing to set: leave out {', '.join(self.options)}.")

    def request(self) -> dict[str, Any] | None:
        """A server's "pruning"; None leaves it to the server."""
        method = self.method.spec() if isinstance(self.method, Pruner) else self.method
        given = {"method": method, **self.options}
        return {name: value for name, value in given.items() if value is not None} or None

    def check(self) -> None:
        """Raise AdaptPruneError for what no engine can use."""
        if self.method == NONE:
            self._check_unpruned()
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise AdaptPruneError(f"keep_ratio={self.keep_ratio:g} is not allowed: use a number above 0 and at most 1.")
        if self.num_keep is not None:
            whole("num_keep", self.num_keep, 1, 2**31)
        if self.layer is not None:
            whole("layer", self.layer, 0, 2**31)


@dataclass
class Answer:
    """An answer and what it cost; None for what an engine does not report. Times in milliseconds.

    Attributes
    ----------
    finish : str
        "stop", "length", or "stopped" if whoever asked cut it off.
    prompt_tokens, read_tokens : int or None
        Tokens of the conversation, and those of them that were not in a kept cache.
    report : PruneReport or None
        Of models in this process that were pruned.
    draw : callable or None
        Draws the pictures with dropped patches dimmed; see `overlay`.
    draw_scores : callable or None
        Draws how the rule ranked patches; see `heat`.
    """

    text: str
    finish: str = "stop"
    prompt_tokens: int | None = None
    read_tokens: int | None = None
    new_tokens: int | None = None
    first_token_ms: float | None = None
    total_ms: float | None = None
    visual_tokens: int | None = None
    visual_tokens_kept: int | None = None
    kv_bytes: int | None = None
    method: str | None = None
    report: PruneReport | None = field(default=None, repr=False)
    draw: Callable[[], Image.Image | None] | None = field(default=None, repr=False)
    draw_scores: Callable[[], Image.Image | None] | None = field(default=None, repr=False)

    @property
    def stopped(self) -> bool:
        """Whether it was cut off by whoever asked."""
        return self.finish == "stopped"

    @property
    def overlay(self) -> Image.Image | None:
        """The pictures with dropped patches dimmed; None if nothing was chosen."""
        return self.draw() if self.draw is not None else None

    @property
    def heat(self) -> Image.Image | None:
        """The pictures under a map of the rule's scores; None if it has none, or they were not asked for."""
        return self.draw_scores() if self.draw_scores is not None else None

    @property
    def decode_tokens_per_second(self) -> float:
        """Rate of the tokens after the first; 0 if there is only one."""
        if self.new_tokens is None or self.first_token_ms is None or self.total_ms is None:
            return 0.0
        seconds = (self.total_ms - self.first_token_ms) / 1000
        return (self.new_tokens - 1) / seconds if self.new_tokens > 1 and seconds > 0 else 0.0

    def __str__(self) -> str:
        """What it cost, in one line for people."""
        parts = []
        if self.visual_tokens:
            parts.append(f"kept {self.visual_tokens_kept} of {self.visual_tokens} visual tokens")
        if self.read_tokens is not None:
            parts.append(f"read {self.read_tokens} of {self.prompt_tokens} tokens")
        elif self.prompt_tokens is not None:
            parts.append(f"{self.prompt_tokens} tokens")
        if self.first_token_ms:
            parts.append(f"first token {self.first_token_ms:.0f} ms")
        if self.stopped:
            parts.append("stopped")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        left_out = ("report", "draw", "draw_scores")
        return {name: value for name, value in vars(self).items() if name not in left_out} | {"stopped": self.stopped}


def quiet(text: str) -> None:
    """Listens to an answer without doing anything."""


def never() -> bool:
    """Stops no answer."""
    return False


class Engine(Protocol):
    """Answers conversations.

    Attributes
    ----------
    name : str
        What answers, for people.
    capabilities : frozenset of str
        KEPT_CACHE, BATCHING, PICTURES.
    """

    name: str
    capabilities: frozenset[str]

    def check(self, pruning: Pruning) -> None:
        """Raise AdaptPruneError, with the reason, for pruning that this engine cannot do."""

    def ask(
        self,
        turns: Sequence[Turn],
        sampling: Sampling | None = None,
        pruning: Pruning | None = None,
        *,
        on_text: Callable[[str], None] = quiet,
        stopping: Callable[[], bool] = never,
    ) -> Answer:
        """Answer the last turn; AdaptPruneError if that does not work.

        Parameters
        ----------
        on_text : callable
            Is handed pieces of the answer as they are finished.
        stopping : callable
            Is asked now and then whether the answer is still wanted.
        """

    def reset(self) -> None:
        """Forget what was kept of earlier questions."""

    def close(self) -> None:
        """Give everything back."""
