"""Running the application: uvicorn, how it starts and how it stops. Loads no models."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from adaptprune.errors import AdaptPruneError
from adaptprune.serve.register import Registration

log = logging.getLogger(__name__)

#: Seconds in which the head of a connection's first request has to arrive.
HEAD_TIMEOUT = 20.0
MAX_CONNECTIONS = 2048
#: Seconds between two signs to a client that has closed its side.
PROBE = 0.2
#: What numbers on the command line may be; others: 1 or more.
RANGES = {
    "port": (0, 65535),
    "gateway_port": (1, 65535),
    "metrics_port": (1, 65535),
    "max_queue": (0, 10**6),
    "timeout": (0, 86400),
    "drain": (0, 86400),
    "hang_after": (1, 86400),
    "health_interval": (1, 3600),
    "threads": (1, 1024),
}
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_access(host: str, keys: list[str], anonymous: bool) -> tuple[str, ...] | None:
    """Names that a server answers to (None: any), by where it listens and whether it has keys.

    Raises
    ------
    AdaptPruneError
        It would be open to the network, and nobody has said so.
    """
    for key in keys:
        if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
            raise AdaptPruneError("an API key has to be 8 or more printable ASCII characters without spaces.")
    if keys:
        return None
    if is_loopback(host):
        return (*LOOPBACK_NAMES, f"[{host}]" if ":" in host else host)
    if not anonymous:
        raise AdaptPruneError(
            f"--host {host} lets others on the network use the model without a key: set --api-key (or the environment "
            "variable ADAPTPRUNE_API_KEY), or say --allow-anonymous if something in front of the server decides who "
            "may ask."
        )
    return None


def check_url(option: str, url: str) -> None:
    """Refuse what is no http(s) address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AdaptPruneError(f"{option} {url!r} is not allowed: write an address such as http://127.0.0.1:9000.")


def check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse what is not one of a few words."""
    if value not in allowed:
        raise AdaptPruneError(f"{option} {value!r} is not allowed: use {', '.join(allowed)}.")


def check_numbers(**values: float | None) -> None:
    """Refuse options of the command line that are no sensible numbers; None is "not given"."""
    for name, value in values.items():
        smallest, largest = RANGES.get(name, (1, 2**40))
        if value is not None and not smallest <= value <= largest:
            option = "--" + name.removeprefix("gateway_").replace("_", "-")
            raise AdaptPruneError(f"{option} {value} is not allowed: use {smallest} to {largest}.")


class _Quiet(logging.Filter):
    """Keeps what machines ask every few seconds out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        parts = record.args if isinstance(record.args, tuple) else ()
        return not (len(parts) == 5 and str(parts[2]).startswith(("/health", "/ready", "/metrics")) and parts[4] == 200)


_QUIET = _Quiet()


class _Protocol(H11Protocol):
    """Closes connections whose first request's head does not arrive; uvicorn waits for it for ever.

    A client that has closed only its sending side gets its answer. One that has left looks the same at first: only
    what is sent to it comes back as an error. So it is sent "100 Continue", which every client skips, until it is
    answered.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(HEAD_TIMEOUT, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and self.transport is not None and not self.transport.is_closing():
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or self.scheme == "https":
            return False  # there is nothing to answer: the transport is closed
        cycle.keep_alive = bool(self.conn.trailing_data[0])  # another request, that has arrived already
        self.loop.call_later(PROBE, self._probe)
        return True

    def _probe(self) -> None:
        cycle = self.cycle
        if cycle.response_started or self.transport.is_closing():  # an answer under way is a probe itself
            return
        if cycle.scope["http_version"] != "1.0":
            self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[])))
        self.loop.call_later(PROBE, self._probe)


class Server(uvicorn.Server):
    """uvicorn that leaves its gateway, refuses new requests, lets running ones finish and fails the rest cleanly.

    Parameters
    ----------
    app : FastAPI
        From `create_app`.
    host, port
        Port 0 takes a free one; see `url`.
    drain : float
        Seconds that running requests have to finish at shutdown.
    registration : Registration, optional
        Where to announce this server once it listens.
    log_level : str
    """

    def __init__(
        self,
        app: FastAPI,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        drain: float = 30.0,
        registration: Registration | None = None,
        log_level: str = "info",
    ) -> None:
        config = uvicorn.Config(
            app,
            host,
            port,
            http=_Protocol,
            ws="none",
            log_level=log_level,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=int(drain) + 10,
            server_header=False,
        )
        super().__init__(config)
        logging.getLogger("uvicorn.access").addFilter(_QUIET)
        self._service = app.state.service
        self._drain = drain
        self._registration = registration

    @property
    def url(self) -> str:
        """Where the server listens, once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and self._registration is not None:
            self._registration.begin(self.url)

    async def shutdown(self, sockets: Any = None) -> None:
        self._service.draining = True
        if self._registration is not None:  # while this server still answers, if only with "shutting down"
            await self._registration.end()
        for engine in self._service.engines.values():
            engine.drain()
        timer = asyncio.create_task(self._give_up())
        await super().shutdown(sockets=sockets)
        timer.cancel()
        await self._stop_engines()

    async def _give_up(self) -> None:
        await asyncio.sleep(self._drain)
        log.warning("requests still running after %g seconds are failed", self._drain)
        await self._stop_engines()

    async def _stop_engines(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(engine.stop) for engine in self._service.engines.values()))
