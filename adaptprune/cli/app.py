"""The command table, and what every command shares: several values per option, errors in one line."""

from __future__ import annotations

import errno
import json
import sys
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from adaptprune._version import __version__
from adaptprune.cli import ends
from adaptprune.cli.quiet import third_parties
from adaptprune.errors import AdaptPruneError

#: What the system says where nothing can be written any more.
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EBADF, errno.EIO)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the exit code to `run`; rich would end the program."""
        raise BrokenPipeError


# rich takes 80 columns where there is no terminal, which cuts tables short in files and pipes
stdout = _Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 140)
stderr = _Console(stderr=True, soft_wrap=True, highlight=False)


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
    """One JSON object on standard output, laid out for reading: a list of numbers is one line, however long."""
    print(_laid_out(value, ""))


def _laid_out(value: Any, margin: str) -> str:
    inner = f"{margin}  "
    if isinstance(value, dict) and value:
        lines = [
            f"{inner}{json.dumps(str(key), ensure_ascii=False)}: {_laid_out(each, inner)}"
            for key, each in value.items()
        ]
        return "{\n" + ",\n".join(lines) + f"\n{margin}}}"
    if isinstance(value, (list, tuple)) and not _of_numbers(value):
        return "[\n" + ",\n".join(inner + _laid_out(each, inner) for each in value) + f"\n{margin}]"
    return json.dumps(value, ensure_ascii=False)


def _of_numbers(value: Any) -> bool:
    """Numbers, or lists of them: positions, sizes, counts."""
    if isinstance(value, (list, tuple)):
        return all(map(_of_numbers, value))
    return value is None or isinstance(value, (int, float))


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
    from adaptprune.cli import (
        bench,
        chat,
        compare,
        doctor,
        families,
        gateway,
        methods,
        review,
        run,
        serve,
        tabletop,
        web,
    )
    from adaptprune.cli import eval as evaluate

    for module in (run, chat, compare, web, evaluate, serve, gateway, methods, families, doctor, bench, tabletop):
        app.command(cls=ManyValues)(module.command)
    app.add_typer(review.group, name="review")


def run() -> int:
    """Carry out the command line, and say in one line what keeps it from being carried out.

    Returns
    -------
    int
        The exit code: 0; 1 if something could not be written or read, or what the command itself means by it; 2 for a
        mistake in what was asked for; 130 after Ctrl-C; 141 if whoever read the output has gone, as `head` does.
    """
    with ends.Noticed() as noticed:
        try:
            code = app(standalone_mode=False, prog_name="adaptprune")
            ends.flush()
        except BaseException as error:
            code = ends.INTERRUPTED if noticed.interrupted() else _ended(error)
            ends.drop_output()
        if code and noticed.interrupted():
            code = ends.INTERRUPTED
    return code if isinstance(code, int) else 0


def _ended(error: BaseException) -> int:
    """The exit code after an exception, which is said if there is something to say; defects are raised again."""
    if isinstance(error, KeyboardInterrupt):
        return ends.INTERRUPTED
    if isinstance(error, AdaptPruneError):
        return _say(str(error), 2)
    # typer ends the program itself if it meets a closed pipe
    if isinstance(error, BrokenPipeError) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
    ):
        return ends.PIPE_CLOSED
    if isinstance(error, OSError):
        return _say(_of_system(error), 1)
    # typer's own: a wrong option has a message, an interrupted program (Abort) has none. Where its classes live
    # depends on its version. Anything else is a defect of ours and keeps its traceback.
    kind = type(error).__name__
    if kind == "Abort":
        return ends.INTERRUPTED
    if kind == "NoArgsIsHelpError":
        return 2  # the help was shown
    if hasattr(error, "format_message"):
        return _say(f"{error.format_message()} See adaptprune --help.", 2)
    raise error


def _of_system(error: OSError) -> str:
    """What the system says; without the name of a file, it is about standard output."""
    if error.errno in WRITING and error.filename is None:
        return f"standard output cannot be written: {error.strerror}."
    return str(error)


def _say(message: str, code: int) -> int:
    ends.say(f"error: {' '.join(message.split())}")
    return code
