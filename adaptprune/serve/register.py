"""Announcing a server to its gateway, and leaving it. Speaks smg's worker registry (POST, GET and DELETE /workers)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import httpx

log = logging.getLogger(__name__)

#: Seconds between two looks at whether the gateway still lists this server (it forgets its workers when it restarts).
INTERVAL = 10.0
TIMEOUT = 10.0


class Registration:
    """Keeps a server on a gateway's list of workers.

    Parameters
    ----------
    gateway : str
        Its address.
    advertise : str, optional
        The address under which the gateway reaches this server; default: the one it listens on.
    worker_key : str, optional
        The API key that the gateway has to use with this server.
    gateway_key : str, optional
        The gateway's own key.
    """

    def __init__(
        self,
        gateway: str,
        *,
        advertise: str | None = None,
        worker_key: str | None = None,
        gateway_key: str | None = None,
    ) -> None:
        self._gateway, self._url, self._worker_key = gateway.rstrip("/"), advertise, worker_key
        headers = {"Authorization": f"Bearer {gateway_key}"} if gateway_key else {}
        self._client = httpx.AsyncClient(trust_env=False, timeout=TIMEOUT, headers=headers)
        self._task: asyncio.Task[None] | None = None

    def begin(self, url: str) -> None:
        """Start registering `url`, and go on until `end`."""
        self._url = (self._url or url).rstrip("/")
        self._task = asyncio.create_task(self._keep())

    async def end(self) -> None:
        """Leave the gateway; a gateway that is gone is no error."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        try:
            for worker in await self._mine():
                await self._client.delete(f"{self._gateway}/workers/{worker['id']}")
            log.info("left the gateway %s", self._gateway)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            log.warning("could not leave the gateway %s: %s", self._gateway, type(error).__name__)
        await self._client.aclose()

    async def _keep(self) -> None:
        listed = False
        while True:
            try:
                if not await self._mine():
                    await self._register()
                    listed = False
                elif not listed:
                    listed = True
                    log.info("registered %s with the gateway %s", self._url, self._gateway)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                listed = False
                log.warning("cannot register with the gateway %s: %s", self._gateway, _why(error))
            await asyncio.sleep(INTERVAL if listed else 1.0)

    async def _mine(self) -> list[dict[str, Any]]:
        answer = await self._client.get(f"{self._gateway}/workers")
        answer.raise_for_status()
        workers: list[dict[str, Any]] = answer.json()["workers"]
        return [worker for worker in workers if worker.get("url", "").rstrip("/") == self._url]

    async def _register(self) -> None:
        body: dict[str, Any] = {"url": self._url}
        if self._worker_key:
            body["api_key"] = self._worker_key
        answer = await self._client.post(f"{self._gateway}/workers", json=body)
        answer.raise_for_status()


def _why(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answered {error.response.status_code}"
    return type(error).__name__
