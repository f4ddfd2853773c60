"""What every response of the page says to the browser, errors included: what it may load, run and be framed by."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

NAME = b"content-security-policy"
INLINE = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
FETCHED = re.compile(r"/(?:file|proxy)=\s*https?:", re.IGNORECASE)
POLICY = "; ".join(
    [
        "default-src 'self'",
        # the scripts that Gradio writes into its page are allowed one by one, by their hashes. 'unsafe-eval': its HTML
        # component compiles its template, which is ours and fixed, with Function(); values only go through it
        "script-src 'self' 'unsafe-eval'{hashes}",
        "style-src 'self' 'unsafe-inline'",  # Gradio sets style attributes and adds style elements
        "img-src 'self' data: blob:",  # data: its icons; blob: previews of what is uploaded
        "media-src 'self' blob:",  # blob: the webcam
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    ]
)
OTHERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
}


class Headers:
    """ASGI middleware that adds the headers; a response that has a policy keeps it.

    It belongs twice around an application that compresses: within, where scripts can be read, and outermost, where
    every refusal passes.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        page = scope["type"] == "http" and scope["path"].rstrip("/") == scope.get("root_path", "").rstrip("/")
        await self._app(scope, receive, _Answer(send, page).send if scope["type"] == "http" else send)


class LocalFiles:
    """ASGI middleware against Gradio's habit of fetching any address for anybody, and passing it on as the page's."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http" and FETCHED.search(scope["path"]):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"this page fetches nothing from other hosts."})
            return
        await self._app(scope, receive, send)


class _Answer:
    """One response. The page itself is held back until it is whole, as its scripts are named in its header.

    No other HTML: whoever could have some served from here would have its scripts allowed.
    """

    def __init__(self, send: Send, page: bool) -> None:
        self._send = send
        self._page = page
        self._start: Message = {}
        self._body = b""
        self._begun = False

    async def send(self, message: Message) -> None:
        """What the application sends."""
        if message["type"] == "http.response.start":
            self._start = message
            html = _header(message, b"content-type").startswith(b"text/html")
            if _header(message, NAME) or not (self._page and html):
                await self._begin("")
            return
        if message["type"] == "http.response.body" and not self._begun:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            found = [base64.b64encode(hashlib.sha256(one).digest()).decode() for one in INLINE.findall(self._body)]
            await self._begin("".join(f" 'sha256-{one}'" for one in found))
            message = {**message, "body": self._body}
        await self._send(message)

    async def _begin(self, hashes: str) -> None:
        ours = {NAME: POLICY.format(hashes=hashes).encode(), **OTHERS}
        added = [(name, value) for name, value in ours.items() if not _header(self._start, name)]
        self._begun = True
        await self._send({**self._start, "headers": [*self._start["headers"], *added]})


def _header(start: Message, name: bytes) -> bytes:
    return next((bytes(value).lower() for key, value in start["headers"] if key.lower() == name), b"")
