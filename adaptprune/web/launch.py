"""Starting the page, and with it a server in this process if no other one is named."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from adaptprune.engines.client import Client
from adaptprune.errors import AdaptPruneError
from adaptprune.web.headers import Headers, LocalFiles
from adaptprune.web.log import ConversationLog
from adaptprune.web.talk import IMAGES, Desk

MAX_BODY = 256 * 2**20  # bytes of a request to the server in this process: as many pixels as a conversation may have


@contextmanager
def serving(engines: Mapping[str, Any]) -> Iterator[Client]:
    """Serve engines to this process alone: loopback, a free port, a key that nobody else has.

    Parameters
    ----------
    engines : mapping of str to Engine
        Not started yet.
    """
    from adaptprune.serve.app import Settings, create_app
    from adaptprune.serve.guard import GuardLimits, Keys
    from adaptprune.serve.pictures import ImageLimits
    from adaptprune.serve.server import Server

    key = secrets.token_urlsafe(32)
    for engine in engines.values():
        engine.start()
    # what the page lets through fits in one request, as it is encoded there
    size = GuardLimits(max_body=MAX_BODY)
    app = create_app(engines, Settings(Keys([key]), images=ImageLimits(max_bytes=MAX_BODY), guard=size))
    server = Server(app, port=0, drain=2, log_level="error")
    thread = threading.Thread(target=asyncio.run, args=(server.serve(),), daemon=True, name="server")
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise AdaptPruneError("the server inside the page did not start: another program may block loopback.")
            time.sleep(0.01)
        yield Client(server.url, key)
    finally:
        server.should_exit = True
        thread.join(15)


@contextmanager
def page(
    client: Client,
    log_folder: Path | None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: tuple[str, str] | None = None,
    hosts: tuple[str, ...] | None = None,
    about: str = "",
) -> Iterator[str]:
    """Show the page; its address.

    Parameters
    ----------
    log_folder : Path or None
        None: no conversation log.
    port : int
        0 takes a free one.
    auth : (str, str), optional
        Name and password that visitors need.
    hosts : tuple of str or None
        Names that the page answers to; None: any.

    Raises
    ------
    AdaptPruneError
        The port is taken, or the log cannot be written.
    """
    from adaptprune.web.page import Page

    log = ConversationLog(log_folder)
    blocks = Page(Desk(client, log), about).build()
    blocks.queue(default_concurrency_limit=32, max_size=256)
    url = _launch(blocks, host, port or _free_port(host), auth, hosts)
    try:
        yield url.rstrip("/")
    finally:
        blocks.close(verbose=False)
        log.close()


def _launch(blocks: Any, host: str, port: int, auth: tuple[str, str] | None, hosts: tuple[str, ...] | None) -> str:
    from adaptprune.web.theme import css, theme

    try:
        _, url, _ = blocks.launch(
            server_name=host,
            server_port=port,
            auth=auth,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            pwa=False,
            mcp_server=False,
            max_file_size=IMAGES.max_bytes,
            theme=theme(),
            css=css(),
            app_kwargs={"middleware": [Middleware(Headers)], "lifespan": _outermost(hosts)},
        )
    except OSError as error:
        raise AdaptPruneError(f"the page cannot listen on {host}:{port} ({error}): choose another --port.") from None
    return str(url)


def _outermost(hosts: tuple[str, ...] | None) -> Callable[[Any], Any]:
    """Answer to our own names only: a page elsewhere must not reach this one through a name that it points here.

    Gradio wraps its own middleware around what is given to it, and some of that answers by itself; so this is put
    around the whole when the application starts, before its first request.
    """

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        inner: Any = LocalFiles(app.middleware_stack)
        if hosts is not None:
            inner = TrustedHostMiddleware(inner, allowed_hosts=list(hosts))
        app.middleware_stack = Headers(inner)
        yield

    return lifespan


def _free_port(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])


def wait(say: Callable[[str], None]) -> None:
    """Until Ctrl-C or SIGTERM."""
    import signal

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    say("stopping")
