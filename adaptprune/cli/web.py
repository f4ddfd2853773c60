"""`adaptprune web`"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import typer

from adaptprune.cli.loading import loading_options
from adaptprune.cli.serve import make_engines, named_models, needs_extra, wait_passively
from adaptprune.errors import AdaptPruneError


@loading_options
def command(
    server: str = typer.Option(
        None, help="An OpenAI-compatible server or gateway. Default: models in this process (--model)."
    ),
    api_key: str = typer.Option(None, envvar="ADAPTPRUNE_API_KEY", help="The server's API key."),
    model: list[str] = typer.Option(
        [], help="Hugging Face name or folder, or NAME=that; several are allowed. Default: the pocket model."
    ),
    loading: Any = None,
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(7860, help="Port; 0 takes a free one."),
    auth: str = typer.Option(None, envvar="ADAPTPRUNE_WEB_AUTH", help="NAME:PASSWORD that visitors have to enter."),
    allow_anonymous: bool = typer.Option(False, help="Listen beyond this machine without a password."),
    log: bool = typer.Option(None, help="Record conversations and votes, and say so on the page. Default: not."),
    log_folder: Path = typer.Option(None, help="Record them in this folder, in place of one in your own (--log)."),
) -> None:
    """Show a web page: chat, compare, and the pictures of what was kept."""
    needs_extra("web", "gradio", "openai", "fastapi", "uvicorn", "httpx", "prometheus_client")
    wait_passively()
    from adaptprune.engines.batch.limits import EngineLimits
    from adaptprune.engines.client import Client
    from adaptprune.serve.server import check_numbers
    from adaptprune.web.launch import page, serving, wait

    check_numbers(port=port)
    user = _auth(auth)
    hosts = _hosts(host, user is not None, allow_anonymous)
    folder = _folder(log, log_folder)
    if server is not None:
        _no_models(model, loading)
        client = Client(server, api_key)
        client.models()  # a mistyped address is said here, not on the page
        source: Any = nullcontext(client)
    else:
        source = serving(make_engines(named_models(model), "adaptprune", EngineLimits(), None, **loading))
    about = f"Answers come from {server}." if server else ""
    with (
        source as client,
        page(client, folder, host=host, port=port, auth=user, hosts=hosts, about=about) as url,
    ):
        print(f"page at {url}", file=sys.stderr, flush=True)
        if folder is not None:
            print(f"conversations are recorded in {folder}", file=sys.stderr, flush=True)
        wait(lambda text: print(text, file=sys.stderr))


command.__name__ = "web"


def _folder(log: bool | None, folder: Path | None) -> Path | None:
    """Where conversations are recorded; None unless that is asked for."""
    if log is False and folder is not None:
        raise AdaptPruneError("--no-log records nothing: leave out --log-folder.")
    if not log and folder is None:
        return None
    return folder or Path(typer.get_app_dir("adaptprune")) / "conversations"


def _auth(auth: str | None) -> tuple[str, str] | None:
    if auth is None:
        return None
    name, colon, password = auth.partition(":")
    if not (name and colon and len(password) >= 8):
        raise AdaptPruneError("--auth has to be NAME:PASSWORD, with a password of 8 or more characters.")
    return name, password


def _hosts(host: str, has_password: bool, anonymous: bool) -> tuple[str, ...] | None:
    """Names that the page answers to."""
    from adaptprune.serve.server import LOOPBACK_NAMES, is_loopback

    if is_loopback(host):
        return (*LOOPBACK_NAMES, f"[{host}]" if ":" in host else host)
    if not has_password and not anonymous:
        raise AdaptPruneError(
            f"--host {host} lets others on the network use the page: set --auth NAME:PASSWORD (or the environment "
            "variable ADAPTPRUNE_WEB_AUTH), or say --allow-anonymous."
        )
    return None


def _no_models(model: list[str], loading: dict[str, Any]) -> None:
    if model or any(loading.values()):
        raise AdaptPruneError("--server has its own models: leave out --model and how to load it.")
