"""A client of OpenAI-compatible servers, ours or others: models, streamed answers, what an answer cost, plain errors.

The official client does the talking; here is what it lacks: pruning, and errors in one line that say what to do.
"""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from adaptprune.errors import AdaptPruneError
from adaptprune.images import decode_image

log = logging.getLogger(__name__)

#: An image is sent without loss up to this many bytes, and as JPEG beyond.
LOSSLESS_BYTES = 5 * 2**20
#: Seconds without a word from the server.
TIMEOUT = 600.0
#: The largest picture that a server may send of what was kept: characters of its base64, and pixels.
MAX_OVERLAY, MAX_OVERLAY_PIXELS = 48 * 2**20, 25_000_000


class ClientError(AdaptPruneError):
    """A server that cannot be reached, or that refused or failed; the message says which and why.

    Attributes
    ----------
    code : str or None
        The server's name for the failure ("queue_full").
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class ServedModel:
    """A model on a server.

    Attributes
    ----------
    methods : tuple of str or None
        Selection rules that it can be pruned with; None if the server does not say (gateways, other engines).
    default : str or None
        The spec of its default pruning, or "none".
    notice : str or None
        What people should know before they believe it.
    """

    name: str
    methods: tuple[str, ...] | None = None
    default: str | None = None
    notice: str | None = None


@dataclass(frozen=True)
class Cost:
    """What an answer cost, as the server reports it; None for what it does not report. Times in milliseconds.

    Attributes
    ----------
    overlay : PIL image or None
        The picture with dropped patches dimmed.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    method: str | None = None
    visual_tokens: int | None = None
    visual_tokens_kept: int | None = None
    first_token_ms: float | None = None
    total_ms: float | None = None
    finish: str | None = None
    overlay: Image.Image | None = None

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "overlay"}


@dataclass(frozen=True)
class Request:
    """What is asked of a model.

    Attributes
    ----------
    messages : sequence of dict
        As the OpenAI API has them; see `message`.
    pruning : mapping or None
        "method" and its options; None leaves it to the server.
    want_overlay : bool
        Ask for the picture of what was kept. Only our servers know of it.
    """

    model: str
    messages: Sequence[dict[str, Any]]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    pruning: Mapping[str, Any] | None = None
    want_overlay: bool = False
    stop: Sequence[str] = field(default_factory=tuple)

    def arguments(self) -> dict[str, Any]:
        """Those of the official client."""
        pruning = {**(self.pruning or {}), **({"return_overlay": True} if self.want_overlay else {})}
        given = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": list(self.stop) or None,
            "extra_body": {"pruning": pruning} if pruning else None,
        }
        return {
            "model": self.model,
            "messages": list(self.messages),
            **{name: value for name, value in given.items() if value is not None},
        }


class Client:
    """One server.

    Parameters
    ----------
    url : str
        With or without the /v1 at its end.
    key : str, optional
        The server's API key.

    Raises
    ------
    AdaptPruneError
        No http(s) address, or the openai package is missing.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = TIMEOUT) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AdaptPruneError(f"server {url!r} is not allowed: write an address such as http://127.0.0.1:8000.")
        try:
            import openai
        except ImportError:
            raise AdaptPruneError("asking a server needs the openai package: pip install 'adaptprune[chat]'.") from None
        self.url = url.rstrip("/").removesuffix("/v1")
        # one retry: a gateway may have sent the request to a worker that was just leaving
        self._client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key or "none", max_retries=1, timeout=openai.Timeout(timeout, connect=10)
        )

    def models(self) -> list[ServedModel]:
        """The models of the server.

        Raises
        ------
        ClientError
        """
        import openai

        try:
            found = self._client.models.list().data
        except openai.OpenAIError as error:
            raise self._explain(error) from None
        except (AttributeError, TypeError, ValueError) as error:
            raise _unreadable(self.url, error) from None
        models = []
        for model in found if isinstance(found, list) else []:
            if isinstance(name := getattr(model, "id", None), str) and name:
                models.append(_served(name, _mapping(getattr(model, "model_extra", None))))
        if not models:
            raise ClientError(f"the server at {self.url} serves no model.")
        return models

    def stream(self, request: Request) -> Iterator[str | Cost]:
        """Pieces of the answer, then what it cost. Closing the iterator gives the request up.

        Raises
        ------
        ClientError
        """
        import httpx
        import openai

        cost: Any = None
        finish = None
        begun = False
        try:
            with self._client.chat.completions.create(
                **request.arguments(), stream=True, stream_options={"include_usage": True}
            ) as chunks:
                for chunk in chunks:
                    begun = True
                    cost = chunk.usage or cost
                    for choice in chunk.choices or ():
                        finish = choice.finish_reason or finish
                        if choice.delta and (text := choice.delta.content):
                            yield _text(text)
        except (openai.OpenAIError, httpx.HTTPError, httpx.StreamError) as error:
            if begun and isinstance(error, (openai.APIConnectionError, httpx.HTTPError, httpx.StreamError)):
                raise ClientError("the server broke off the answer: ask again.", "cut_off") from None
            raise self._explain(error) from None
        except (AttributeError, TypeError, ValueError) as error:
            raise _unreadable(self.url, error) from None
        if finish is None:
            raise ClientError("the server ended the answer before it was complete: ask again.", "cut_off")
        yield _cost(cost, finish)

    def _explain(self, error: Exception) -> ClientError:
        import openai

        if isinstance(error, openai.APITimeoutError):
            return ClientError(f"the server at {self.url} said nothing for too long: try again later.", "timeout")
        if isinstance(error, openai.APIConnectionError):
            why = error.__cause__ or error
            return ClientError(
                f"the server at {self.url} cannot be reached ({why}): is it running (adaptprune serve)?", "unreachable"
            )
        if isinstance(error, openai.APIStatusError):
            body = error.body if isinstance(error.body, dict) else {}
            message = str(body.get("message") or error.message or error.response.reason_phrase)
            hint = ": give the right API key" if error.status_code == 401 and "key" not in message else ""
            return ClientError(f"the server refused ({error.status_code}): {message}{hint}", _code(body))
        body = error.body if isinstance(error, openai.APIError) and isinstance(error.body, dict) else {}
        return ClientError(f"the server failed: {body.get('message') or error}", _code(body))


def _unreadable(url: str, error: Exception) -> ClientError:
    """For answers of other shapes or types than the API's, which the official client does not check."""
    log.debug("what %s says cannot be read", url, exc_info=error)
    return ClientError(f"what the server at {url} says is not what the OpenAI API describes.", "unreadable")


def _code(body: dict[str, Any]) -> str | None:
    return code if isinstance(code := body.get("code"), str) else None


def _text(piece: Any) -> str:
    if not isinstance(piece, str):
        raise TypeError(f"a piece of an answer is a {type(piece).__name__}")
    return piece


def _served(name: str, more: Mapping[str, Any]) -> ServedModel:
    """A model and what our servers say of it; what has another type than theirs was not said."""
    pruning, notice = more.get("pruning"), more.get("notice")
    methods = default = None
    if isinstance(pruning, dict) and isinstance(listed := pruning.get("methods"), list):
        methods = tuple(method for method in listed if isinstance(method, str))
        default = pruning.get("default")
    return ServedModel(
        name,
        methods,
        default if isinstance(default, str) else None,
        notice if isinstance(notice, str) else None,
    )


def _cost(usage: Any, finish: Any) -> Cost:
    """What a server reports; None for what is no number that can be true."""
    more = _mapping(getattr(usage, "model_extra", None))
    pruning, timing = _mapping(more.get("pruning")), _mapping(more.get("timing"))
    method, picture = pruning.get("method"), pruning.get("overlay")
    total, kept = _count(pruning.get("visual_tokens")), _count(pruning.get("visual_tokens_kept"))
    if total is None or kept is None or kept > total:
        total = kept = None
    return Cost(
        _count(getattr(usage, "prompt_tokens", None)),
        _count(getattr(usage, "completion_tokens", None)),
        method if isinstance(method, str) else None,
        total,
        kept,
        _milliseconds(timing.get("first_token_ms")),
        _milliseconds(timing.get("total_ms")),
        finish if isinstance(finish, str) else None,
        _picture(picture) if isinstance(picture, str) else None,
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else None


def _milliseconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value < 10**9 and math.isfinite(value) else None


def _picture(url: str) -> Image.Image | None:
    head = "data:image/png;base64,"
    if not url.startswith(head) or len(url) > MAX_OVERLAY:
        return None
    try:
        data = base64.b64decode(url[len(head) :], validate=True)
        return decode_image(data, "the overlay", max_pixels=MAX_OVERLAY_PIXELS, formats=("PNG",))
    except (AdaptPruneError, ValueError) as error:
        log.warning("the server's picture of what was kept cannot be read: %s", error)
        return None


def data_url(image: Image.Image) -> str:
    """An image for a message: PNG, or JPEG if that would be large."""
    kind, buffer = "png", io.BytesIO()
    image.save(buffer, "PNG")
    if buffer.tell() > LOSSLESS_BYTES:
        kind, buffer = "jpeg", io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=95)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def text_part(text: str) -> dict[str, Any]:
    """A text in a message."""
    return {"type": "text", "text": text}


def image_part(url: str) -> dict[str, Any]:
    """An image in a message."""
    return {"type": "image_url", "image_url": {"url": url}}


def message(role: str, text: str, urls: Sequence[str] = ()) -> dict[str, Any]:
    """A message: images, then text."""
    if not urls:
        return {"role": role, "content": text}
    return {"role": role, "content": [*map(image_part, urls), text_part(text)]}
