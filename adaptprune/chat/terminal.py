"""The loop at the terminal: lines in, answers out, history, Tab, Ctrl-C. Works with pipes on either side too."""

from __future__ import annotations

import glob
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adaptprune.chat.session import Quit, Session
from adaptprune.engines.protocol import KEPT_CACHE, Answer
from adaptprune.errors import AdaptPruneError

PROMPT = "> "
HISTORY_LINES = 1000


class Terminal:
    """Runs a session.

    Parameters
    ----------
    session : Session
    history : Path
        File that keeps what was typed, if somebody types.
    as_json : bool
        One JSON object per answer (or error) and line, instead of streamed text.
    """

    def __init__(self, session: Session, history: Path, as_json: bool = False) -> None:
        self._session, self._history, self._json = session, history, as_json
        self._typed = sys.stdin.isatty()
        self._failed = False
        self._reading = self._answering = self._stop = False

    def run(self) -> int:
        """Until the end of input or /quit; 2 if a piped line could not be carried out."""
        if not self._typed:  # Ctrl-C ends the program, as it does any other in a pipe
            self._loop()
            return 2 if self._failed else 0
        before = signal.signal(signal.SIGINT, self._pressed)
        try:
            with _line_editing(self._history):
                self._loop()
        finally:
            signal.signal(signal.SIGINT, before)
        return 0

    def _loop(self) -> None:
        while True:
            try:
                self._reading = True
                line = input(PROMPT if self._typed else "")
            except EOFError:
                if self._typed:
                    print()
                return
            except KeyboardInterrupt:
                if not self._typed:
                    raise
                print("\nCtrl-D or /quit leaves.", file=sys.stderr)
                continue
            except UnicodeDecodeError:
                self._error("the input is not valid text: write it in UTF-8.")
                return
            finally:
                self._reading = False
            try:
                self._enter(line)
            except Quit:
                return

    def _enter(self, line: str) -> None:
        self._stop, self._answering = False, True
        try:
            answer = self._session.enter(line, self._write, lambda: self._stop)
        except (AdaptPruneError, OSError) as error:
            if isinstance(error, OSError) and error.filename is None:
                raise  # it is our own output that cannot be written
            self._error(str(error))
            return
        except KeyboardInterrupt:  # pressed twice: the answer is given up with what it has so far
            if not self._typed:
                raise
            print("\nstopped; the question is not part of the conversation", file=sys.stderr)
            return
        finally:
            self._answering = False
        if answer is not None:
            self._show(line, answer)

    def _pressed(self, *_: Any) -> None:
        """Ctrl-C stops the answer between two tokens; pressed again, at once. It never ends the program.

        An answer over a kept cache must not be torn out of a layer, or the cache could not be used again.
        """
        if self._reading or (self._answering and (self._stop or KEPT_CACHE not in self._session.engine.capabilities)):
            raise KeyboardInterrupt
        self._stop = True

    def _write(self, text: str) -> None:
        if not self._json:
            print(text, end="", flush=True)

    def _show(self, question: str, answer: Answer) -> None:
        if self._json:
            print(json.dumps({"question": question.strip(), **answer.to_dict()}, ensure_ascii=False), flush=True)
            return
        print(flush=True)
        if cost := str(answer):
            print(f"\033[2m{cost}\033[0m" if sys.stderr.isatty() else cost, file=sys.stderr, flush=True)

    def _error(self, message: str) -> None:
        self._failed = True
        message = " ".join(message.split())
        if self._json:
            print(json.dumps({"error": message}, ensure_ascii=False), flush=True)
        else:
            print(f"error: {message}", file=sys.stderr, flush=True)


@contextmanager
def _line_editing(history: Path) -> Iterator[None]:
    """Arrow keys, a history that outlives the program, and Tab, where Python has readline."""
    try:
        import readline
    except ImportError:  # Windows: the console edits lines itself
        yield
        return
    with suppress(OSError):
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims(" ")
    readline.set_completer(completer())
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(history)
            history.chmod(0o600)  # it holds what was asked


def completer(line: Callable[[], str] | None = None) -> Callable[[str, int], str | None]:
    """What Tab offers: commands, then what their argument can be.

    Parameters
    ----------
    line : callable, optional
        The line so far; readline's.
    """

    def complete(word: str, number: int) -> str | None:
        if line is None:
            import readline

            text = readline.get_line_buffer()
        else:
            text = line()
        found = _offers(text, word)
        return found[number] if number < len(found) else None

    return complete


def _offers(text: str, word: str) -> list[str]:
    if not text.startswith("/"):
        return []
    command, blank, _ = text[1:].partition(" ")
    if not blank:
        return [f"/{name} " for name in Session.COMMANDS if f"/{name}".startswith(word)]
    if command in ("image", "overlay", "save"):
        paths = sorted(glob.glob(glob.escape(str(Path(word).expanduser()) if word.startswith("~") else word) + "*"))
        return [path + ("/" if Path(path).is_dir() else " ") for path in paths]
    if command == "method":
        from adaptprune.methods import list_methods

        return [name for name in (*list_methods(), "none") if name.startswith(word)]
    return [choice for choice in ("on", "off") if command == "reselect" and choice.startswith(word)]
