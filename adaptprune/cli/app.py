"""The command table, and what every command shares: several values per option, errors in one line."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from adaptprune._version import __version__
from adaptprune.cli.quiet import third_parties
from adaptprune.errors import AdaptPruneError

# rich takes 80 columns where there is no terminal, which cuts tables short in files and pipes
stdout = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 140)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


class ManyValues(TyperCommand):
    """Lets an option that may be repeated take several values at once: ``--image a.png b.png``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        many = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        expanded: list[str] = []
        option = None
        for arg in args:
            if option and not arg.startswith("-") and expanded[-1] != option:
                expanded.append(option)
            elif arg.startswith("-"):
                option = arg if arg in many else None
            expanded.append(arg)
        return super().parse_args(ctx, expanded)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def version(wanted: bool) -> None:
    if wanted:
        print(f"adaptprune {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="adaptprune",
    help="Drop the visual tokens that a vision-language model does not need, without training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def options(
    show_version: bool = typer.Option(False, "--version", callback=version, is_eager=True, help="Print the version."),
) -> None:
    third_parties()


def add_commands() -> None:
    from adaptprune.cli import bench, chat, doctor, families, gateway, methods, review, run, serve, tabletop, web
    from adaptprune.cli import eval as evaluate

    for module in (run, chat, web, evaluate, serve, gateway, methods, families, doctor, bench, tabletop):
        app.command(cls=ManyValues)(module.command)
    app.add_typer(review.group, name="review")


def main() -> None:
    """Entry point. A mistake in what was asked for ends in one line and exit code 2, a failing disk in code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter is no reason to stop
    add_commands()
    try:
        code = app(standalone_mode=False)
    except AdaptPruneError as error:
        _say(str(error))
        sys.exit(2)
    except OSError as error:
        _say(str(error))
        sys.exit(1)
    except Exception as error:
        # typer's own: a wrong option has a message, an interrupted program (Abort) has none. Where its classes live
        # depends on its version. Anything else is a defect of ours and keeps its traceback.
        if type(error).__name__ == "Abort":
            sys.exit(130)
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.exit(2)  # the help was shown
        _say(f"{error.format_message()} See adaptprune --help.")
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _say(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
