"""What the web page does, without the page: conversations, comparisons, votes. Changes are steps of an iterator."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from adaptprune.engines.client import Client, Cost, Request, ServedModel, data_url, message
from adaptprune.engines.protocol import Pruning
from adaptprune.errors import AdaptPruneError
from adaptprune.images import MAX_PIXELS, decode_image
from adaptprune.methods import list_methods
from adaptprune.web.log import ConversationLog

#: Methods of the controls besides those of the model.
SERVER_DEFAULT, UNPRUNED = "default", "none"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
#: Seconds between two looks at a stop, and between two steps of a fast answer.
STEP = 0.05


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
        ratio = None if self.method == UNPRUNED or "keep_ratio=" in self.method else self.keep_ratio
        return Pruning(self.method, ratio).request()


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
    """

    question: str
    images: tuple[str, ...]
    controls: Controls
    answer: str = ""
    state: str = "waiting"
    cost: Cost = field(default_factory=Cost)
    error: str = ""
    vote: str = ""

    def line(self) -> str:
        """What it cost, in one line for people."""
        if self.state == "failed":
            return "failed"
        cost, parts = self.cost, []
        if cost.visual_tokens:
            parts.append(f"{cost.visual_tokens_kept} of {cost.visual_tokens} visual tokens kept")
        elif self.images and self.state == "done":
            parts.append("pruning not reported by this server")
        if cost.first_token_ms:
            parts.append(f"first token {cost.first_token_ms:.0f} ms")
        if cost.completion_tokens:
            parts.append(f"{cost.completion_tokens} tokens written")
        if cost.finish == "length":
            parts.append("cut at max tokens")
        if self.state == "stopped":
            parts.append("stopped")
        return " · ".join(parts)

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
    """The same question to two sides."""

    left: Exchange
    right: Exchange
    id: str = field(default_factory=lambda: secrets.token_hex(8))


class Desk:
    """Answers for the page.

    Parameters
    ----------
    client : Client
    log : ConversationLog
    """

    def __init__(self, client: Client, log: ConversationLog) -> None:
        self.log = log
        self._client = client
        self._models: dict[str, ServedModel] = {}

    # -- models -------------------------------------------------------------------------------------------------------

    def refresh(self) -> list[str]:
        """Ask the server for its models; their names."""
        self._models = {model.name: model for model in self._client.models()}
        return list(self._models)

    def methods(self, model: str | None) -> list[str]:
        """Methods that the controls offer for a model."""
        served = self._models.get(model or "")
        known = served.methods if served is not None and served.methods is not None else list_methods()
        return [SERVER_DEFAULT, *known, UNPRUNED]

    # -- chat ---------------------------------------------------------------------------------------------------------

    def ask(
        self, talk: Conversation, question: str, images: Sequence[str], controls: Controls, stop: threading.Event
    ) -> Iterator[None]:
        """Add a question and its answer to a conversation; a step for each change. A failed one leaves no trace.

        Raises
        ------
        AdaptPruneError
            There is no question, or it could not be answered.
        """
        exchange = Exchange(_question(question), tuple(images), controls)
        before = list(talk.exchanges)
        talk.exchanges.append(exchange)
        yield
        for _ in self._answer(exchange, before, stop):
            yield
        self.log.write("answer", talk.id, exchange.images, **exchange.record())
        if exchange.state == "failed":
            talk.exchanges.remove(exchange)
            raise AdaptPruneError(exchange.error)
        yield

    def regenerate(self, talk: Conversation, controls: Controls, stop: threading.Event) -> Iterator[None]:
        """Answer the last question anew; if that fails, the old answer stays."""
        old = talk.last
        if old is None:
            raise AdaptPruneError("there is no answer yet: ask something first.")
        talk.exchanges.pop()
        try:
            yield from self.ask(talk, old.question, old.images, controls, stop)
        except AdaptPruneError:
            talk.exchanges.append(old)
            raise

    def vote(self, talk: Conversation, kind: str) -> str:
        """Note "upvote", "downvote" or "flag" for the last answer; what to tell the visitor."""
        exchange = talk.last
        if exchange is None or exchange.state not in ("done", "stopped"):
            raise AdaptPruneError("there is no answer to judge yet: ask something first.")
        if exchange.vote == kind:
            return "Noted already."
        if not self.log.write(kind, talk.id, exchange.images, **exchange.record()):
            raise AdaptPruneError("the conversation log is off or cannot be written: nothing was noted.")
        exchange.vote = kind
        return "Thank you, noted."

    # -- compare ------------------------------------------------------------------------------------------------------

    def compare(
        self, question: str, images: Sequence[str], left: Controls, right: Controls, stop: threading.Event
    ) -> Iterator[Comparison]:
        """Ask both sides, one after the other, so that neither's times suffer from the other's work.

        Raises
        ------
        AdaptPruneError
            There is no question. What goes wrong on one side is in its `Exchange.error`.
        """
        question = _question(question)
        both = Comparison(Exchange(question, tuple(images), left), Exchange(question, tuple(images), right))
        yield both
        for side in (both.left, both.right):
            for _ in self._answer(side, [], stop):
                yield both
        sides = {"left": both.left.record(), "right": both.right.record()}
        self.log.write("compare", both.id, both.left.images, **sides)
        yield both

    def prefer(self, both: Comparison | None, kind: str) -> str:
        """Note which side was better: "left", "right", "tie" or "neither"."""
        if both is None:
            raise AdaptPruneError("there is nothing to judge yet: compare something first.")
        sides = {"left": both.left.record(), "right": both.right.record()}
        if not self.log.write("prefer", both.id, both.left.images, choice=kind, **sides):
            raise AdaptPruneError("the conversation log is off or cannot be written: nothing was noted.")
        return "Thank you, noted."

    # -- one answer ---------------------------------------------------------------------------------------------------

    def _answer(self, exchange: Exchange, before: Sequence[Exchange], stop: threading.Event) -> Iterator[None]:
        """Fill in the answer of an exchange; failures too."""
        if stop.is_set():
            exchange.state = "stopped"
            return
        try:
            pieces = _read(self._client.stream(self._request(exchange, before)), stop)
            shown = 0.0
            for piece in pieces:
                if isinstance(piece, Cost):
                    exchange.cost = piece
                    continue
                exchange.state = "writing"
                exchange.answer += piece
                if time.monotonic() - shown > STEP:
                    shown = time.monotonic()
                    yield
            exchange.state = "stopped" if stop.is_set() else "done"
        except AdaptPruneError as error:
            exchange.state, exchange.error = "failed", str(error)

    def _request(self, exchange: Exchange, before: Sequence[Exchange]) -> Request:
        controls = exchange.controls
        if not controls.model:
            raise AdaptPruneError("no model is chosen: refresh the list, then choose one.")
        messages = []
        for one in (*before, exchange):
            messages.append(message("user", one.question, [_url(image) for image in one.images]))
            if one is not exchange:
                messages.append(message("assistant", one.answer))
        served = self._models.get(controls.model)
        seen = any(one.images for one in (*before, exchange))
        ours = served is not None and served.methods is not None
        return Request(
            controls.model,
            messages,
            max_tokens=int(controls.max_tokens),
            temperature=controls.temperature,
            top_p=controls.top_p if controls.temperature > 0 else None,
            pruning=controls.pruning(),
            want_overlay=seen and (ours or controls.method != SERVER_DEFAULT),
        )


def _question(text: str) -> str:
    text = text.strip()
    if not text:
        raise AdaptPruneError("write a question first.")
    return text


@lru_cache(maxsize=64)
def _url(path: str) -> str:
    name = Path(path).name
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise AdaptPruneError(f"the image {name!r} is no longer there ({error.strerror}): add it again.") from None
    return data_url(decode_image(data, name, max_pixels=MAX_PIXELS, formats=FORMATS))


def _read(pieces: Iterator[str | Cost], stop: threading.Event) -> Iterator[str | Cost]:
    """What `pieces` gives, until `stop` is set: a thread waits for the server, so that a stop need not.

    A request that was stopped before its first word is closed when that arrives.
    """
    waiting: queue.SimpleQueue[str | Cost | BaseException | None] = queue.SimpleQueue()
    done = threading.Event()

    def read() -> None:
        try:
            for piece in pieces:
                waiting.put(piece)
                if done.is_set():
                    break
            waiting.put(None)
        except BaseException as error:  # handed to the thread that waits
            waiting.put(error)
        finally:
            pieces.close()  # type: ignore[attr-defined]

    threading.Thread(target=read, daemon=True, name="answer").start()
    try:
        while not stop.is_set():
            try:
                piece = waiting.get(timeout=STEP)
            except queue.Empty:
                continue
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        done.set()
