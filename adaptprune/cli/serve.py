"""`adaptprune serve`"""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import suppress
from typing import Any

import typer

from adaptprune.cli.loading import loading_options
from adaptprune.cli.quiet import progress_bars
from adaptprune.errors import AdaptPruneError


@loading_options
def command(
    model: list[str] = typer.Option(
        [], help="Hugging Face name or folder, or NAME=that; several are allowed. Default: the pocket model."
    ),
    method: str = typer.Option("adaptprune", help="For requests that do not say: method or spec; none is unpruned."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(8000, help="Port; 0 takes a free one."),
    api_key: list[str] = typer.Option(
        [],
        envvar="ADAPTPRUNE_API_KEY",
        help="Keys that clients need; better set as the environment variable, which other users cannot see.",
    ),
    allow_anonymous: bool = typer.Option(False, help="Listen beyond this machine without an API key."),
    loading: Any = None,
    max_batch: int = typer.Option(32, help="Answers written at the same time, per model."),
    max_queue: int = typer.Option(128, help="Requests that may wait beyond those; one more gets 429."),
    max_tokens: int = typer.Option(2048, help="The most new tokens of one answer."),
    max_prompt_tokens: int = typer.Option(None, help="Longest prompt, images included. Default: the model's context."),
    timeout: float = typer.Option(600.0, help="Seconds after which a request is given up."),
    hang_after: float = typer.Option(120.0, help="Seconds of one forward after which /health reports a hung engine."),
    drain: float = typer.Option(30.0, help="Seconds that running requests have to finish at shutdown."),
    allow_image_hosts: list[str] = typer.Option(
        [],
        help="Hosts whose http(s) images are fetched: example.com, "
        "*.example.com, example.com:8443, * for every public one.",
    ),
    max_images: int = typer.Option(16, help="Images of one request."),
    max_image_bytes: int = typer.Option(20 * 2**20, help="Bytes of one encoded image."),
    max_pixels: int = typer.Option(50_000_000, help="Pixels of all images of one request."),
    max_body_bytes: int = typer.Option(32 * 2**20, help="Bytes of one request."),
    register: str = typer.Option(None, help="Gateway to register with (adaptprune gateway); left at shutdown."),
    advertise: str = typer.Option(None, help="Address under which the gateway reaches this server."),
    gateway_key: str = typer.Option(None, envvar="ADAPTPRUNE_GATEWAY_KEY", help="The gateway's own API key."),
    threads: int = typer.Option(
        None, help="CPU threads of each model. Default: one per core, asleep while they wait (OMP_WAIT_POLICY)."
    ),
    log_level: str = typer.Option("info", help="critical, error, warning, info or debug."),
) -> None:
    """Serve models over the OpenAI chat API."""
    needs_extra("serve", "fastapi", "uvicorn", "httpx", "prometheus_client")
    wait_passively()
    from adaptprune.engines.batch.limits import EngineLimits
    from adaptprune.serve.guard import GuardLimits, Keys
    from adaptprune.serve.pictures import ImageLimits, check_hosts
    from adaptprune.serve.server import LOG_LEVELS, Server, check_access, check_choice, check_numbers

    check_numbers(
        port=port, max_batch=max_batch, max_queue=max_queue, max_tokens=max_tokens, timeout=timeout, drain=drain,
        hang_after=hang_after,
        max_prompt_tokens=max_prompt_tokens, max_images=max_images, max_image_bytes=max_image_bytes,
        max_pixels=max_pixels, max_body_bytes=max_body_bytes, threads=threads,
    )  # fmt: skip
    check_choice("--log-level", log_level, LOG_LEVELS)
    check_hosts(allow_image_hosts)
    hosts = check_access(host, api_key, allow_anonymous)
    registration = _registration(register, advertise, gateway_key, host, api_key)
    limits = EngineLimits(max_batch, max_queue, max_tokens, max_prompt_tokens, timeout, hang_after)
    engines = make_engines(
        named_models(model), method, limits, threads,
        **loading,
    )  # fmt: skip
    from adaptprune.serve.app import Settings, create_app

    images = ImageLimits(max_images, max_image_bytes, max_pixels, tuple(allow_image_hosts))
    settings = Settings(Keys(api_key), hosts, images, GuardLimits(max_body=max_body_bytes))
    for engine in engines.values():
        engine.start()
    server = Server(
        create_app(engines, settings), host, port, drain=drain, registration=registration, log_level=log_level
    )
    gc.collect()
    gc.freeze()  # what is loaded stays: looking through it for garbage would hold up everybody for a fifth of a second
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
        asyncio.run(server.serve())
    if not server.started:
        raise typer.Exit(1)  # uvicorn has said why


command.__name__ = "serve"


def needs_extra(extra: str, *modules: str) -> None:
    """Say which extra is missing, before anything slow."""
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise AdaptPruneError(
            f"this command needs {', '.join(missing)}, which is not installed: pip install 'adaptprune[{extra}]'."
        )


def wait_passively() -> None:
    """Let CPU threads that wait for each other sleep, before torch is imported.

    By default they spin, and where another program keeps a core busy they spin away the very time that the last one
    of them needs to get done: a server then writes a fraction of what one thread alone would.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def named_models(models: list[str]) -> dict[str, str]:
    """NAME=SOURCE, or SOURCE under its own name."""
    found: dict[str, str] = {}
    for entry in models or ["pocket"]:
        name, equals, source = entry.partition("=")
        source = source if equals else entry
        if not name or not source:
            raise AdaptPruneError(f"--model {entry!r} is not allowed: write NAME=FOLDER, or a name or folder alone.")
        if name in found:
            raise AdaptPruneError(f"two models are called {name!r}: give them names, --model first={source}.")
        found[name] = source
    return found


def _registration(gateway: str | None, advertise: str | None, key: str | None, host: str, keys: list[str]) -> Any:
    if gateway is None:
        if advertise is not None:
            raise AdaptPruneError(
                "--advertise says under which address a gateway reaches this server: give --register."
            )
        return None
    from adaptprune.serve.register import Registration
    from adaptprune.serve.server import check_url

    check_url("--register", gateway)
    if advertise is not None:
        check_url("--advertise", advertise)
    elif host in ("0.0.0.0", "::"):
        raise AdaptPruneError(
            f"--host {host} is no address that a gateway can reach: give --advertise http://NAME:PORT."
        )
    return Registration(gateway, advertise=advertise, worker_key=keys[0] if keys else None, gateway_key=key)


def make_engines(
    sources: dict[str, str], method: str, limits: Any, threads: int | None, **options: Any
) -> dict[str, Any]:
    """Load every model. `options` are those of `adaptprune.load`."""
    from adaptprune.engines.batch.engine import Engine
    from adaptprune.engines.protocol import Pruning
    from adaptprune.methods import make_pruner
    from adaptprune.models import load

    pruner = None if method == "none" else make_pruner(method)
    progress_bars()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    engines = {}
    for name, source in sources.items():
        engine = Engine(name, *load(source, **options), limits, pruner)
        if pruner is not None:
            engine.check(Pruning())
        engines[name] = engine
    return engines
