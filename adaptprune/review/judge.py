"""The judge: any endpoint that speaks OpenAI's chat completions, through the `openai` SDK.

Repeating a failed request is the SDK's business alone: connection errors, timeouts and the statuses 408, 409, 429 and
5xx, with growing pauses, or as long as ``Retry-After`` says (up to two minutes; longer is a failure). What is added
here is a deadline over all of that, since the SDK's timeout counts from one byte to the next. An error becomes a
`Reply` that says so, never a score.

The key is read from the environment when a run begins, is written nowhere, and is blotted out of what the server says.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from adaptprune.checks import not_negative, positive, whole
from adaptprune.errors import AdaptPruneError
from adaptprune.review.request import Messages

KEY_VARIABLE = "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"
#: Words that stand in for a key where none is needed ("EMPTY", "none") are shorter; blotting them out would hurt texts.
SHORTEST_SECRET = 8
LONGEST_ERROR, LONGEST_REPLY = 500, 100_000
RESERVED = ("model", "messages", "stream", "n")


@dataclass(frozen=True)
class Reply:
    """What came back: a text, or an error."""

    content: str | None = None
    error: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: dict[str, int] | None = None


@dataclass(frozen=True)
class Judge:
    """Who reviews, and how it is asked.

    Parameters
    ----------
    model : str
        The judge's name at the endpoint. Scores of different judges cannot be compared, so there is no default.
    url : str, optional
        Base URL of the endpoint, ``http://localhost:8000/v1``. Default: the variable OPENAI_BASE_URL, or OpenAI's own.
    key_variable : str
        Environment variable that holds the key.
    temperature, max_tokens : float, int, optional
        Default: what the benchmark uses.
    request : mapping
        Further fields of the request, over the former two; None takes a field out (``{"max_tokens": None,
        "max_completion_tokens": 4096, "temperature": None}`` suits OpenAI's reasoning models).
    timeout : float
        Seconds that one attempt may stay silent.
    deadline : float
        Seconds for one review, all attempts and pauses included.
    retries : int
        Attempts after the first one.
    concurrency : int
        Reviews under way at once.

    Raises
    ------
    AdaptPruneError
        A value is out of its range, or the URL holds a password or a query.
    """

    model: str
    url: str | None = None
    key_variable: str = KEY_VARIABLE
    temperature: float | None = None
    max_tokens: int | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    deadline: float = 900.0
    retries: int = 5
    concurrency: int = 4

    def __post_init__(self) -> None:
        if not self.model or not self.model.strip():
            raise AdaptPruneError("judge_model is empty: name the model that reviews.")
        if self.temperature is not None:
            not_negative("temperature", self.temperature)
            if self.temperature > 2:
                raise AdaptPruneError(f"temperature={self.temperature!r} is not allowed: it is a number from 0 to 2.")
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, 1, 2**20)
        positive("timeout", self.timeout)
        positive("deadline", self.deadline)
        whole("retries", self.retries, 0, 100)
        whole("concurrency", self.concurrency, 1, 256)
        taken = [name for name in self.request if name in RESERVED]
        if taken:
            raise AdaptPruneError(f"request may not set {taken[0]!r}: it is set by the review itself.")
        try:
            json.dumps(dict(self.request), allow_nan=False).encode()
        except (TypeError, ValueError):
            raise AdaptPruneError(f"request={self.request!r} cannot be written as JSON.") from None
        self.endpoint()

    def endpoint(self) -> str:
        """The base URL that is asked."""
        named = "judge_url" if self.url else "the environment variable OPENAI_BASE_URL"
        url = self.url or os.environ.get("OPENAI_BASE_URL", "").strip() or OPENAI_URL
        try:
            parts = urlsplit(url)
            right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            right = False
        if not right:
            raise AdaptPruneError(f"{named} is no address: write it like http://localhost:8000/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise AdaptPruneError(f"{named} may not hold a name, a password or a query: put the key in a variable.")
        return url

    def settings(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the request besides model and messages."""
        mine = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        given = {name: value for name, value in mine.items() if value is not None}
        return {name: value for name, value in {**defaults, **given, **self.request}.items() if value is not None}

    def connect(self) -> Connection:
        """Read the key and make a client; `async with` closes it."""
        try:
            import openai
        except ImportError:
            raise AdaptPruneError("the review needs the openai package: pip install 'adaptprune[judge]'.") from None
        endpoint, key = self.endpoint(), self._key()
        client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=endpoint, timeout=self.timeout, max_retries=self.retries
        )
        return Connection(self, client, key)

    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip()
        if not key and (self.key_variable != KEY_VARIABLE or self.endpoint() == OPENAI_URL):
            raise AdaptPruneError(
                f"the environment variable {self.key_variable} is not set: put the judge's key in it."
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise AdaptPruneError(f"what the environment variable {self.key_variable} holds cannot be a key.")
        return key


class Connection:
    """An open client. Use as ``async with judge.connect() as connection``."""

    def __init__(self, judge: Judge, client: Any, key: str) -> None:
        self._judge, self._client = judge, client
        self.__key = key

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def ask(self, messages: Messages, settings: Mapping[str, Any]) -> Reply:
        """Ask once (the SDK repeats); whatever goes wrong is in the reply."""
        judge = self._judge
        asking = self._client.chat.completions.create(
            model=judge.model, messages=messages, extra_body=dict(settings) or None
        )
        try:
            response = await asyncio.wait_for(asking, judge.deadline)
        except asyncio.TimeoutError:
            return Reply(error=f"no reply within the deadline of {judge.deadline:g} s")
        except Exception as error:  # whatever the SDK and what lies under it raise ends this review, not the others
            return Reply(error=self._clean(_describe(error, judge), LONGEST_ERROR))
        return self._reply(response)

    def _reply(self, response: Any) -> Reply:
        """The SDK does not check what it is sent, so every part may be missing or of another type."""
        choices = getattr(response, "choices", None)
        if not isinstance(choices, list) or not choices:
            told = self._clean(str(getattr(response, "error", None) or response), LONGEST_ERROR)
            return Reply(error=f"the reply is no chat completion: {told}")
        message = getattr(choices[0], "message", None)
        content, refusal = getattr(message, "content", None), getattr(message, "refusal", None)
        usage = {
            name: count
            for name in ("prompt_tokens", "completion_tokens")
            if isinstance(count := getattr(getattr(response, "usage", None), name, None), int)
        }
        text = content if isinstance(content, str) else refusal if isinstance(refusal, str) else ""
        return Reply(
            content=self._clean(text, LONGEST_REPLY),
            model=self._name(getattr(response, "model", None)),
            finish_reason=self._name(getattr(choices[0], "finish_reason", None)),
            usage=usage or None,
        )

    def _name(self, value: Any) -> str | None:
        return self._clean(value, 200) if isinstance(value, str) else None

    def _clean(self, text: str, length: int) -> str:
        """Without the key (looked for before anything is cut), without half characters, and not endless."""
        if len(self.__key) >= SHORTEST_SECRET:
            text = text.replace(self.__key, "[key]")
        return text.encode("utf-8", "replace").decode()[:length]


def _describe(error: Exception, judge: Judge) -> str:
    import openai

    if isinstance(error, openai.APITimeoutError):
        return f"no reply within {judge.timeout:g} s, the last of {judge.retries + 1} attempts"
    if isinstance(error, openai.APIStatusError):
        body = error.body
        told = body.get("message") if isinstance(body, dict) else body
        return f"HTTP {error.status_code}: {' '.join(str(told or error).split())}"
    if isinstance(error, openai.APIConnectionError):
        return f"no connection: {error.__cause__ or error}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
