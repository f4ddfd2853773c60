"""The outermost layer: who may ask, how large a request may be and how slowly it may be sent or read. Plain ASGI.

Not here: what is asked. Every refusal is an OpenAI error object.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptprune.engines.batch.memory import give_back
from adaptprune.engines.errors import EngineError, from_exception
from adaptprune.serve.errors import ServeError, error_object, status_of

log = logging.getLogger(__name__)
#: Bytes of a body after which memory is given back.
LARGE = 2**20
Message = MutableMapping[str, Any]


@dataclass(frozen=True)
class GuardLimits:
    """Attributes
    ----------
    max_body : int
        Bytes of one request.
    max_bodies : int
        Bytes of all requests that are being read or answered.
    body_timeout : float
        Seconds in which a request's body has to arrive.
    send_timeout : float
        Seconds that a client may take to read what was sent last.
    """

    max_body: int = 32 * 2**20
    max_bodies: int = 512 * 2**20
    body_timeout: float = 60.0
    send_timeout: float = 60.0


class Keys:
    """API keys, compared in constant time and kept as digests, so that none ends in a log or a traceback."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: str) -> bool:
        """Whether an Authorization header carries one of the keys."""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        # every key is compared, whichever fits
        fits = sum([hmac.compare_digest(given, digest) for digest in self._digests])
        return scheme.lower() == "bearer" and fits > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Guard:
    """ASGI middleware.

    Parameters
    ----------
    app
        The ASGI application inside.
    keys : Keys
        If there are any, paths under /v1 need one of them.
    hosts : tuple of str or None
        Names in the Host header that are answered; None: all. A server on loopback without a key answers only to its
        own names, or any web page could reach it through a name of its own (DNS rebinding).
    limits : GuardLimits
    refused : callable, optional
        Is told the model ("" where none was reached) and the error's code of every request that is refused here.
    """

    def __init__(
        self,
        app: Any,
        keys: Keys,
        hosts: tuple[str, ...] | None,
        limits: GuardLimits,
        refused: Callable[[str, str], None] = lambda model, code: None,
    ) -> None:
        self._app, self._keys, self._hosts, self._limits, self._refused = app, keys, hosts, limits, refused
        self._held = 0
        self._untidy, self._tidied = False, 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            started = True
            try:
                await asyncio.wait_for(send(message), self._limits.send_timeout)
            except asyncio.TimeoutError:
                raise ConnectionError("the client does not read its answer") from None

        body = _Body(receive, self)
        try:
            self._admit(scope)
            await self._app(scope, body.receive, sent)
        except ConnectionError as error:
            log.info("%s", error)
        except Exception as error:
            if not isinstance(error, EngineError):
                log.exception("a request failed")
            shown = from_exception(error)
            self._refused(scope.get("state", {}).get("model", ""), shown.code)
            if not started:
                await answer(send, shown)
        finally:
            self._held -= body.size
            self._tidy_up(body.size)

    def _tidy_up(self, size: int) -> None:
        """Give memory back once no body is held any more, if there was a large one; once in a second at most."""
        self._untidy = self._untidy or size > LARGE
        if self._untidy and not self._held and self._timer is None:
            loop = asyncio.get_running_loop()
            # a moment later: the last references to the body end with this task
            self._timer = loop.call_later(max(0.05, self._tidied + 1 - loop.time()), self._give_back, loop)

    def _give_back(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if not self._held:
            self._untidy, self._tidied = False, loop.time()
            loop.run_in_executor(None, give_back)

    def _admit(self, scope: Any) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = _hostname(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise ServeError(
                403, "host_not_allowed", "this server answers only to its own name: use its address, or set an API key."
            )
        if self._keys and scope["path"].startswith("/v1") and not self._keys.accept(headers.get("authorization", "")):
            raise ServeError(401, "invalid_api_key", "the API key is missing or wrong: send Authorization: Bearer KEY.")
        size = headers.get("content-length", "0")
        if size.isdigit() and int(size) > self._limits.max_body:
            raise self.too_large()

    def hold(self, size: int) -> None:
        """Count bytes of a body that is being read; refuse if there are too many in all."""
        if self._held + size > self._limits.max_bodies:
            raise ServeError(429, "busy", "the server holds too much data at the moment: try again.", retry_after=5)
        self._held += size

    @property
    def limits(self) -> GuardLimits:
        return self._limits

    def too_large(self) -> ServeError:
        message = f"the request has more than the {self._limits.max_body:,} bytes that are allowed."
        return ServeError(413, "request_too_large", message)


class _Body:
    """Receives a request's body within its limits."""

    def __init__(self, receive: Callable[[], Awaitable[Message]], guard: Guard) -> None:
        self._receive, self._guard = receive, guard
        self._complete = False
        self._until: float | None = None
        self.size = 0

    async def receive(self) -> Message:
        if self._complete:  # now only the client's leaving can be heard
            return await self._receive()
        loop = asyncio.get_running_loop()
        if self._until is None:
            self._until = loop.time() + self._guard.limits.body_timeout
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - loop.time()))
        except asyncio.TimeoutError:
            raise ServeError(408, "request_timeout", "the request's body did not arrive in time.") from None
        size = len(message.get("body", b""))
        if self.size + size > self._guard.limits.max_body:
            raise self._guard.too_large()
        self._guard.hold(size)
        self.size += size
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message


def _hostname(host: str) -> str:
    """The name in a Host header, without its port."""
    name = host.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]


async def answer(send: Any, error: EngineError) -> None:
    """Send an error object."""
    body = json.dumps(error_object(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_extra(error)]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _extra(error: EngineError) -> list[tuple[bytes, bytes]]:
    found = [(b"retry-after", str(error.retry_after).encode())] if error.retry_after is not None else []
    if status_of(error) in (408, 413):
        found.append((b"connection", b"close"))  # the rest of the body is not read
    if status_of(error) == 401:
        found.append((b"www-authenticate", b"Bearer"))
    return found
