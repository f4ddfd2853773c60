"""The gateway: smg as a child process, with our defaults, and the workers that were named on the command line.

smg routes by model, looks after its workers' health and sends a request that a worker did not answer to another one.
A stream that has begun cannot be moved: it is cut, which clients see as an error, and they have to ask again. Workers
come and go through smg's registry (see `register`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx

from adaptprune.errors import AdaptPruneError
from adaptprune.serve.server import check_access, check_choice, check_numbers, check_url

POLICIES = ("power_of_two", "least_load", "round_robin", "random", "cache_aware", "prefix_hash", "consistent_hashing")
#: Seconds for smg to listen, and for an upstream to name its model.
START_TIMEOUT = 30.0


class Gateway:
    """One smg process.

    Parameters
    ----------
    workers : sequence of str
        Addresses of our servers.
    upstreams : sequence of str
        ``NAME=URL`` of other engines; their one model is asked for as NAME too.
    api_key, worker_key : str, optional
        What clients have to send, and what the gateway sends to `workers` and `upstreams`.
    say : callable
        Is handed lines for the person at the terminal.

    Raises
    ------
    AdaptPruneError
        An address that is none, an upstream that does not answer or serves several models, a policy that is unknown.
    """

    def __init__(
        self,
        workers: Sequence[str],
        upstreams: Sequence[str] = (),
        *,
        host: str = "127.0.0.1",
        port: int = 9000,
        api_key: str | None = None,
        worker_key: str | None = None,
        policy: str = "power_of_two",
        anonymous: bool = False,
        metrics_port: int = 29000,
        health_interval: int = 2,
        log_level: str = "warn",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        check_access(host, [api_key] if api_key else [], anonymous)
        check_choice("--policy", policy, POLICIES)
        check_choice("--log-level", log_level, ("error", "warn", "info", "debug"))
        check_numbers(gateway_port=port, metrics_port=metrics_port, health_interval=health_interval)
        for worker in workers:
            check_url("--worker", worker)
        named = [_named(entry) for entry in upstreams]
        self._urls = [*workers, *(url for _, url in named)]
        self._worker_key, self._key, self._say = worker_key, api_key, say
        address = f"[{host}]" if ":" in host else {"0.0.0.0": "127.0.0.1"}.get(host, host)
        self.url = f"http://{address}:{port}"
        aliases = [f"{name}={model}" for name, url in named if (model := _model_of(name, url, worker_key)) != name]
        self.command = [
            sys.executable, "-m", "smg.cli", "launch", "--host", host, "--port", str(port),
            "--enable-igw",  # several models, and workers that come and go
            "--policy", policy,
            # our servers report no token counts; what the gateway itself has sent them is what it can compare
            *(["--power-of-two-load-metric", "requests"] if policy == "power_of_two" else []),
            "--disable-tokenizer-autoload",  # routing needs none
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port),
            "--health-check-interval-secs", str(health_interval), "--health-failure-threshold", "2",
            "--health-success-threshold", "1", "--health-check-timeout-secs", "5",
            "--retry-max-retries", "5", "--retry-initial-backoff-ms", "50", "--retry-max-backoff-ms", "2000",
            # a dead worker is left alone by its health checks; the breaker would also shut out one that is only full
            "--disable-circuit-breaker",
            "--log-level", log_level,
            *(word for alias in aliases for word in ("--model-alias", alias)),
        ]  # fmt: skip

    def run(self) -> int:
        """Run until smg ends or this process is told to; smg's exit code, 0 after Ctrl-C or SIGTERM."""
        # smg reads its key from the command line only; other users of the machine could read it there
        key = ["--api-key", self._key] if self._key else []
        process = subprocess.Popen([*self.command, *key], start_new_session=True)
        stopping = False

        def stop(*_: Any) -> None:
            nonlocal stopping
            stopping = True
            process.terminate()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if self._listens(process):
                self._add_workers()
                self._say(f"gateway at {self.url}")
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return 0 if stopping else code

    def _listens(self, process: subprocess.Popen[bytes]) -> bool:
        until = time.monotonic() + START_TIMEOUT
        while time.monotonic() < until and process.poll() is None:
            with suppress(httpx.HTTPError):
                self._client().get(f"{self.url}/health", timeout=2)
                return True
            time.sleep(0.1)
        return False

    def _add_workers(self) -> None:
        for url in self._urls:
            body = {"url": url.rstrip("/")} | ({"api_key": self._worker_key} if self._worker_key else {})
            answer = self._client().post(f"{self.url}/workers", json=body, timeout=START_TIMEOUT)
            if answer.status_code >= 400:
                self._say(f"warning: the gateway refuses the worker {url}: {answer.status_code}")

    def _client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return httpx.Client(trust_env=False, headers=headers)


def _named(entry: str) -> tuple[str, str]:
    name, _, url = entry.partition("=")
    if not name or not url or "://" in name:
        raise AdaptPruneError(
            f"--upstream {entry!r} is not allowed: write NAME=URL, such as llava=http://127.0.0.1:30000."
        )
    check_url("--upstream", url)
    return name, url.removesuffix("/").removesuffix("/v1")


def _model_of(name: str, url: str, key: str | None) -> str:
    """The one model of an upstream, which smg has to be told about at its start."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=START_TIMEOUT, trust_env=False)
        answer.raise_for_status()
        models = [str(model["id"]) for model in answer.json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise AdaptPruneError(
            f"--upstream {name}={url} does not list its models ({type(error).__name__}): start it first."
        ) from None
    if name in models:
        return name
    if len(models) != 1:
        raise AdaptPruneError(
            f"--upstream {name}={url} serves {', '.join(models) or 'no model'}: call it by one of those."
        )
    return models[0]
