"""What the web page does, without the page: conversations, comparisons, votes. Changes are steps of an iterator."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.engines.client import Client, Cost, Request, ServedModel, data_url, message
from adaptprune.errors import AdaptPruneError
from adaptprune.images import WEB_FORMATS, decode_image
from adaptprune.methods import list_methods
from adaptprune.serve.asks import MAX_TEXT
from adaptprune.serve.pictures import ImageLimits
from adaptprune.web.exchange import MAX_ANSWER, SERVER_DEFAULT, UNPRUNED, Comparison, Controls, Conversation, Exchange
from adaptprune.web.log import ConversationLog

#: What our servers take, so that the page refuses nothing that they would answer, and the other way round.
IMAGES, MAX_TOKENS = ImageLimits(), EngineLimits().max_tokens
#: Models that a server may name, methods of each, and characters of a name.
MAX_NAMES, MAX_NAME = 1000, 500
#: Seconds between two looks at a stop, and between two steps of a fast answer; more as the answer grows.
STEP, STEP_PER_CHARACTER = 0.05, 1 / 200_000
#: Pieces of an answer that are read before they are shown.
AHEAD = 256
#: Half a character: JSON may hold one, files and pages may not.
BROKEN = re.compile("[\ud800-\udfff]")
#: How servers name parts of a request and addresses of their API when they refuse.
PARTS = re.compile(r"'?messages\[\d+\](?:\.\w+(?:\[\d+\])?)*'?")
ROUTES = re.compile(r"\b(?:GET|HEAD|POST|PUT|DELETE) /\S* ?|(?<![\w.])/v1/\S*")


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
        self._judging = threading.Lock()

    # -- models -------------------------------------------------------------------------------------------------------

    def refresh(self) -> list[str]:
        """Ask the server for its models; their names."""
        found = [model for model in self._client.models() if _usable(model.name)]
        self._models = {model.name: model for model in found[:MAX_NAMES]}
        return self.models()

    def models(self) -> list[str]:
        """The models that the server named last."""
        return list(self._models)

    def notices(self) -> dict[str, str]:
        """What people should know of models before they believe them."""
        return {name: whole(model.notice) for name, model in self._models.items() if model.notice}

    def methods(self, model: str | None) -> list[str]:
        """Methods that the controls offer for a model."""
        served = self._models.get(model or "")
        known = served.methods if served is not None and served.methods is not None else list_methods()
        return [SERVER_DEFAULT, *filter(_usable, known[:MAX_NAMES]), UNPRUNED]

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
        if exchange is None or not exchange.over:
            raise AdaptPruneError("there is no answer to judge yet: ask something first.")
        with self._judging:  # a double click is one vote
            if exchange.vote:
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
        if both is None or not (both.left.over and both.right.over):
            raise AdaptPruneError("there are no two answers to judge yet: compare something first.")
        with self._judging:
            if both.choice:
                return "Noted already."
            sides = {"left": both.left.record(), "right": both.right.record()}
            if not self.log.write("prefer", both.id, both.left.images, choice=kind, **sides):
                raise AdaptPruneError("the conversation log is off or cannot be written: nothing was noted.")
            both.choice = kind
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
                exchange.answer = (exchange.answer + whole(piece))[:MAX_ANSWER]
                if len(exchange.answer) == MAX_ANSWER:
                    break
                if time.monotonic() - shown > STEP + len(exchange.answer) * STEP_PER_CHARACTER:
                    shown = time.monotonic()
                    yield
            exchange.state = "stopped" if stop.is_set() else "done"
        except AdaptPruneError as error:
            exchange.state, exchange.error = "failed", for_people(str(error))

    def _request(self, exchange: Exchange, before: Sequence[Exchange]) -> Request:
        controls = exchange.controls
        if not controls.model:
            raise AdaptPruneError("no model is chosen: refresh the list, then choose one.")
        turns = (*before, exchange)
        urls = _checked(turns)
        messages = []
        for one in turns:
            messages.append(message("user", one.question, [urls[image] for image in one.images]))
            if one is not exchange:
                messages.append(message("assistant", one.answer))
        served = self._models.get(controls.model)
        ours = served is not None and served.methods is not None
        return Request(
            controls.model,
            messages,
            max_tokens=int(controls.max_tokens),
            temperature=controls.temperature,
            top_p=controls.top_p if controls.temperature > 0 else None,
            pruning=controls.pruning(),
            want_overlay=bool(urls) and (ours or controls.method != SERVER_DEFAULT),
        )


def _question(text: str) -> str:
    text = text.strip()
    if not text:
        raise AdaptPruneError("write a question first.")
    return text


def _checked(turns: Sequence[Exchange]) -> dict[str, str]:
    """The images of a conversation as they are sent, by their files.

    Raises
    ------
    AdaptPruneError
        There is more in the conversation than a server takes, or an image cannot be read.
    """
    images = [image for one in turns for image in one.images]
    if len(images) > IMAGES.max_images:
        raise AdaptPruneError(
            f"the conversation has {len(images)} images, more than the {IMAGES.max_images} that one may have: attach "
            "fewer, or clear it."
        )
    text = sum(len(one.question) + len(one.answer) for one in turns)
    if text > MAX_TEXT:
        raise AdaptPruneError(
            f"the conversation has {text:,} characters, more than the {MAX_TEXT:,} that one may have: write less, or "
            "clear it."
        )
    encoded = {image: _url(image) for image in images}
    pixels = sum(encoded[image][1] for image in images)
    if pixels > IMAGES.max_pixels:
        raise AdaptPruneError(
            f"the images of the conversation have {pixels:,} pixels together, more than the {IMAGES.max_pixels:,} that "
            "are allowed: attach fewer or smaller ones, or clear it."
        )
    return {image: url for image, (url, _) in encoded.items()}


@lru_cache(maxsize=64)
def _url(path: str) -> tuple[str, int]:
    """An image as it is sent, and its pixels."""
    name = Path(path).name
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise AdaptPruneError(f"the image {name!r} is no longer there ({error.strerror}): add it again.") from None
    image = decode_image(data, name, max_pixels=IMAGES.max_pixels, formats=WEB_FORMATS)
    return data_url(image), image.width * image.height


def whole(text: str) -> str:
    """A text that can be written anywhere."""
    return BROKEN.sub("\ufffd", text)


def for_people(text: str) -> str:
    """What a server says, without the names that only programs know."""
    text = PARTS.sub(lambda found: "the image" if "image" in found[0] else "the question", whole(text))
    return ROUTES.sub("", text)


def _usable(name: str) -> bool:
    """Whether a server's name for something can be shown and sent back."""
    return 0 < len(name) <= MAX_NAME and name == whole(name)


def _read(pieces: Iterator[str | Cost], stop: threading.Event) -> Iterator[str | Cost]:
    """What `pieces` gives, until `stop` is set: a thread waits for the server, so that a stop need not.

    A request that was stopped before its first word is closed when that arrives.
    """
    waiting: queue.Queue[str | Cost | BaseException | None] = queue.Queue(AHEAD)
    done = threading.Event()

    def hand(piece: str | Cost | BaseException | None) -> None:
        while not done.is_set():
            with suppress(queue.Full):  # a server that writes faster than anybody reads
                waiting.put(piece, timeout=STEP)
                break

    def read() -> None:
        try:
            for piece in pieces:
                hand(piece)
                if done.is_set():
                    break
            hand(None)
        except BaseException as error:  # handed to the thread that waits
            hand(error)
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
