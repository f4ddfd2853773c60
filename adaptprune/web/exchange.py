"""Questions, their answers and what those cost: the values that `talk` works on and `views` shows."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from adaptprune.engines.client import Cost
from adaptprune.engines.protocol import Pruning

#: Methods of the controls besides those of the model.
SERVER_DEFAULT, UNPRUNED = "default", "none"
#: Characters of an answer beyond which a server is not listened to.
MAX_ANSWER = 200_000


@dataclass(frozen=True)
class Controls:
    """What the page's controls say.

    Attributes
    ----------
    method : str
        A name, a spec, "none", or "default" for the server's own.
    """

    model: str | None
    method: str = SERVER_DEFAULT
    keep_ratio: float = 0.25
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512

    def pruning(self) -> dict[str, Any] | None:
        """A request's "pruning"."""
        if self.method == SERVER_DEFAULT:
            return None
        return Pruning(self.method, self.keep_ratio if takes_keep_ratio(self.method) else None).request()


def takes_keep_ratio(method: str) -> bool:
    """Whether the keep ratio has a say besides a method or spec."""
    return method not in (SERVER_DEFAULT, UNPRUNED) and not re.search(r"\b(keep_ratio|num_keep)=", method)


@dataclass
class Exchange:
    """A question and its answer.

    Attributes
    ----------
    images : tuple of str
        Files.
    state : str
        "waiting", "writing", "done", "stopped" or "failed".
    error : str
        Why it failed.
    vote : str
        What was said of it.
    picture : str
        Where the page has its overlay.
    """

    question: str
    images: tuple[str, ...]
    controls: Controls
    answer: str = ""
    state: str = "waiting"
    cost: Cost = field(default_factory=Cost)
    error: str = ""
    vote: str = ""
    picture: str = ""

    @property
    def over(self) -> bool:
        """Whether there is an answer, complete or stopped."""
        return self.state in ("done", "stopped")

    def numbers(self) -> list[tuple[str, str]]:
        """What it cost: numbers, and what each counts."""
        cost, found = self.cost, []
        if cost.visual_tokens and cost.visual_tokens_kept is not None:
            found.append((f"{cost.visual_tokens_kept:,} of {cost.visual_tokens:,}", "picture tokens kept"))
        if wait := cost.first_token_ms:
            found.append((f"{wait:.0f} ms" if wait < 10_000 else f"{wait / 1000:.1f} s", "to the first token"))
        if cost.visual_tokens and cost.visual_tokens_kept is not None:
            found.append((f"{100 * (1 - cost.visual_tokens_kept / cost.visual_tokens):.0f} %", "of the tokens saved"))
        return found

    def remarks(self) -> list[str]:
        """What else is to be said of it."""
        found = []
        if self.images and self.state == "done" and not self.cost.visual_tokens:
            found.append("pruning not reported by this server")
        if self.cost.completion_tokens:
            found.append(f"{self.cost.completion_tokens:,} tokens written")
        if self.cost.finish == "length":
            found.append("cut at max tokens")
        if len(self.answer) >= MAX_ANSWER:
            found.append(f"cut at {MAX_ANSWER:,} characters")
        if self.state == "stopped":
            found.append("stopped")
        return found

    def record(self) -> dict[str, Any]:
        """For the log."""
        return {
            "question": self.question,
            "answer": self.answer,
            "state": self.state,
            "error": self.error or None,
            "controls": vars(self.controls),
            "cost": self.cost.to_dict(),
        }


@dataclass
class Conversation:
    """The exchanges of one visitor, oldest first."""

    exchanges: list[Exchange] = field(default_factory=list)
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def last(self) -> Exchange | None:
        """The latest exchange."""
        return self.exchanges[-1] if self.exchanges else None


@dataclass
class Comparison:
    """The same question to two sides; `choice` is which was better."""

    left: Exchange
    right: Exchange
    choice: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
