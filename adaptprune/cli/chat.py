"""`adaptprune chat`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from adaptprune.cli.loading import OPTIONS, loading_options, say_notice
from adaptprune.cli.quiet import progress_bars
from adaptprune.errors import AdaptPruneError


@loading_options
def command(
    image: list[str] = typer.Option([], "--image", "-i", help="Images for the first question: paths or addresses."),
    loading: Any = None,
    server: str = typer.Option(None, help="Ask an OpenAI-compatible server at this address; --model is one of its."),
    api_key: str = typer.Option(None, envvar="ADAPTPRUNE_API_KEY", help="The server's API key."),
    method: str = typer.Option(None, help="Method or spec; none runs unpruned. Default: adaptprune, or the server's."),
    keep_ratio: float = typer.Option(None, help="Fraction of visual tokens kept, above 0 and at most 1."),
    num_keep: int = typer.Option(None, help="Visual tokens kept per image, in place of --keep-ratio."),
    layer: int = typer.Option(None, help="Prune before this decoder layer."),
    reselect: bool = typer.Option(True, help="Choose anew among all visual tokens at every question."),
    max_new_tokens: int = typer.Option(None, help="Length limit of an answer. Default: 512, or the server's."),
    temperature: float = typer.Option(0.0, help="0 is greedy."),
    top_p: float = typer.Option(None, help="With a temperature: choose among the most likely tokens of this mass."),
    seed: int = typer.Option(None, help="Seed for sampling."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object per answer and line."),
) -> None:
    """Talk about images in the terminal, with a model here or on a server; /help lists its commands."""
    from adaptprune.chat.session import Session, Settings
    from adaptprune.chat.terminal import Terminal
    from adaptprune.engines.protocol import Pruning
    from adaptprune.engines.sampling import Sampling
    from adaptprune.images import open_image

    if server is None and method is None:
        method = "adaptprune"
    pruning = Pruning(method, keep_ratio, num_keep, layer, reselect)
    settings = Settings(pruning, Sampling(max_new_tokens, temperature, top_p, seed))
    settings.check()
    for source in image:  # before anything slow
        open_image(source)
    engine = _engine(server, api_key, loading, as_json)
    try:
        session = Session(engine, settings, lambda text: print(text, file=sys.stderr))
        session.show(*image)
        if sys.stdin.isatty() and not as_json:
            print(f"{engine.name}. /help lists commands, /image PATH shows a picture.", file=sys.stderr)
        code = Terminal(session, Path(typer.get_app_dir("adaptprune")) / "chat-history", as_json).run()
    finally:
        engine.close()
    if code:
        raise typer.Exit(code)


command.__name__ = "chat"


def _engine(server: str | None, key: str | None, loading: dict[str, Any], as_json: bool) -> Any:
    if server is None:
        from adaptprune.engines.local import LocalEngine
        from adaptprune.models import load

        progress_bars(not as_json)
        engine = LocalEngine(*load(**loading))
        say_notice(engine.model)
        return engine
    from adaptprune.engines.client import Client
    from adaptprune.engines.remote import RemoteEngine

    model = loading.pop("name_or_path")
    for name, (argument, _, _) in OPTIONS.items():
        if loading.get(argument):
            raise AdaptPruneError(f"--{name.replace('_', '-')} loads a model here: leave it out with --server.")
    return RemoteEngine(Client(server, key), model)
