"""`adaptprune gateway`"""

from __future__ import annotations

import sys

import typer

from adaptprune.cli.serve import needs_extra


def command(
    worker: list[str] = typer.Option(
        [], help="Address of an adaptprune server; those with --register come by themselves."
    ),
    upstream: list[str] = typer.Option(
        [], help="NAME=URL: any OpenAI-compatible engine (SGLang, vLLM), asked for as NAME."
    ),
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(9000, help="Port."),
    api_key: str = typer.Option(None, envvar="ADAPTPRUNE_API_KEY", help="Key that clients and workers need."),
    worker_key: str = typer.Option(None, envvar="ADAPTPRUNE_WORKER_KEY", help="Key that --worker and --upstream need."),
    allow_anonymous: bool = typer.Option(False, help="Listen beyond this machine without an API key."),
    policy: str = typer.Option(
        "power_of_two", help="How smg chooses a worker: power_of_two, least_load, round_robin..."
    ),
    metrics_port: int = typer.Option(29000, help="Port of the gateway's own Prometheus metrics."),
    health_interval: int = typer.Option(2, help="Seconds between two health checks of a worker."),
    log_level: str = typer.Option("warn", help="error, warn, info or debug."),
) -> None:
    """Put one address in front of many servers; runs smg, an existing router, with settings that fit."""
    needs_extra("gateway", "smg", "httpx")
    from adaptprune.serve.gateway import Gateway

    gateway = Gateway(
        worker, upstream, host=host, port=port, api_key=api_key, worker_key=worker_key, policy=policy,
        anonymous=allow_anonymous, metrics_port=metrics_port, health_interval=health_interval, log_level=log_level,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    code = gateway.run()
    if code:
        raise typer.Exit(code)


command.__name__ = "gateway"
