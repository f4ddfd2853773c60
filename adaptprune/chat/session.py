"""A chat: its conversation, its settings, and the commands that begin with a slash. No terminal and no model here."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from adaptprune.engines.protocol import KEPT_CACHE, NONE, Answer, Engine, Pruning
from adaptprune.engines.sampling import Sampling
from adaptprune.errors import AdaptPruneError
from adaptprune.images import open_image
from adaptprune.prompts import Turn
from adaptprune.registry import did_you_mean


@dataclass(frozen=True)
class Settings:
    """How questions are answered."""

    pruning: Pruning = field(default_factory=Pruning)
    sampling: Sampling = field(default_factory=Sampling)

    def check(self) -> None:
        """Raise AdaptPruneError for numbers that no engine can use."""
        self.pruning.check()
        self.sampling.check()

    def to_dict(self) -> dict[str, Any]:
        """What was chosen, as plain types."""
        chosen = {"method": self.pruning.method, **self.pruning.options, "reselect": self.pruning.reselect}
        names = ("max_tokens", "temperature", "top_p", "seed")
        return chosen | {name: getattr(self.sampling, name) for name in names}


class Quit(Exception):
    """The chat is over."""


class Session:
    """One conversation.

    Parameters
    ----------
    engine : Engine
    settings : Settings
    say : callable
        Is handed lines about the chat itself.
    """

    #: Name: arguments, what it does.
    COMMANDS: ClassVar[dict[str, tuple[str, str]]] = {
        "image": ("PATH...", "show images with the next question (paths, http(s) addresses, example:NAME)"),
        "prune": ("RATIO", "keep this fraction of the visual tokens: /prune 0.1"),
        "method": ("SPEC", "choose the method, with its options: /method fastv:layer=3; none runs unpruned"),
        "reselect": ("on|off", "choose anew among all visual tokens at every question (local models)"),
        "overlay": ("[FILE.png]", "write the picture of what was kept for the last question"),
        "reset": ("", "begin a new conversation"),
        "save": ("FILE.json", "write the conversation with what every answer cost"),
        "help": ("", "show this list"),
        "quit": ("", "leave; so does Ctrl-D"),
    }

    def __init__(self, engine: Engine, settings: Settings, say: Callable[[str], None]) -> None:
        settings.check()
        engine.check(settings.pruning)
        self.engine, self.settings = engine, settings
        self.turns: list[Turn] = []
        self.names: list[tuple[str, ...]] = []  # of each turn, where its images came from
        self.answers: list[Answer] = []
        self._say = say
        self._pending: list[tuple[str, Any]] = []  # name and picture
        self._written: set[Path] = set()  # by this session, which may write them again

    def enter(self, line: str, on_text: Callable[[str], None], stopping: Callable[[], bool]) -> Answer | None:
        """Carry out a command (None), or answer a question.

        Raises
        ------
        AdaptPruneError
            Nothing of the conversation is lost by it.
        Quit
        """
        line = line.strip()
        if not line:
            return None
        if line.startswith("/"):
            self._command(line)
            return None
        return self._ask(line, on_text, stopping)

    def show(self, *sources: str) -> None:
        """Add images to the next question."""
        opened = [(source, open_image(source)) for source in sources]  # all or none
        self._pending += opened

    def _ask(self, question: str, on_text: Callable[[str], None], stopping: Callable[[], bool]) -> Answer:
        asked = Turn("user", [*(image for _, image in self._pending), question])
        settings = self.settings
        answer = self.engine.ask(
            [*self.turns, asked], settings.sampling, settings.pruning, on_text=on_text, stopping=stopping
        )
        if answer.text or not answer.stopped:
            self.turns += [asked, Turn("assistant", [answer.text])]
            self.names += [tuple(name for name, _ in self._pending), ()]
            self.answers.append(answer)
            self._pending = []
        return answer

    # -- commands -----------------------------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        name = {"exit": "quit", "?": "help"}.get(name, name)
        if name not in self.COMMANDS:
            raise AdaptPruneError(f"there is no command /{name}.{did_you_mean(name, self.COMMANDS)} See /help.")
        getattr(self, f"_{name}")(*_words(rest))

    def _image(self, *sources: str) -> None:
        if not sources:
            raise self._misused("image")
        self.show(*sources)
        self._say(f"{', '.join(name for name, _ in self._pending)}: shown with the next question")

    def _prune(self, *words: str) -> None:
        try:
            (ratio,) = map(float, words)
        except ValueError:
            raise self._misused("prune") from None
        method = self.settings.pruning.method
        self._change(method="adaptprune" if method == NONE else method, keep_ratio=ratio, num_keep=None)

    def _method(self, *words: str) -> None:
        if len(words) != 1:
            raise self._misused("method")
        (method,) = words
        before, changes = self.settings.pruning.options, dict.fromkeys(("keep_ratio", "num_keep", "layer"))
        kept = {} if method == NONE else {name: value for name, value in before.items() if f"{name}=" not in method}
        self._change(method=method, **changes | kept)

    def _reselect(self, *words: str) -> None:
        if words not in (("on",), ("off",)):
            raise self._misused("reselect")
        if KEPT_CACHE not in self.engine.capabilities:
            raise AdaptPruneError("a server reads the whole conversation at every question, so it always chooses anew.")
        self._change(reselect=words == ("on",))

    def _change(self, **changes: Any) -> None:
        wanted = replace(self.settings.pruning, **changes)
        self.engine.check(wanted)
        self.settings = replace(self.settings, pruning=wanted)
        told = f"method {wanted.method or 'of the server'}"
        told += "".join(f", {name} {value:g}" for name, value in wanted.options.items())
        if KEPT_CACHE in self.engine.capabilities:
            told += ", reselect " + ("on" if wanted.reselect else "off")
            told += "; the conversation is read anew at the next question" if self.turns else ""
        self._say(told)

    def _overlay(self, *words: str) -> None:
        if len(words) > 1:
            raise self._misused("overlay")
        picture = self.answers[-1].overlay if self.answers else None
        if picture is None:
            raise AdaptPruneError(
                "nothing was chosen for the last question: ask about an image first, with a method other than none"
                + ("." if self.settings.pruning.reselect else " and with /reselect on.")
            )
        path = self._target(words[0] if words else f"overlay-{len(self.answers)}.png", ".png")
        picture.save(path)
        self._wrote(path)

    def _save(self, *words: str) -> None:
        if len(words) != 1:
            raise self._misused("save")
        path = self._target(words[0], ".json")
        path.write_text(json.dumps(self.record(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self._wrote(path)

    def record(self) -> dict[str, Any]:
        """The conversation as plain types, for JSON."""
        turns = [
            {"role": turn.role, "text": turn.text, **({"images": list(names)} if names else {})}
            for turn, names in zip(self.turns, self.names, strict=True)
        ]
        costs = [answer.to_dict() for answer in self.answers]
        return {"model": self.engine.name, "settings": self.settings.to_dict(), "turns": turns, "replies": costs}

    def _reset(self, *words: str) -> None:
        self.turns, self.names, self.answers, self._pending = [], [], [], []
        self.engine.reset()
        self._say("a new conversation")

    def _help(self, *words: str) -> None:
        for name, (arguments, what) in self.COMMANDS.items():
            self._say(f"  /{f'{name} {arguments}'.strip():<20} {what}")
        self._say("Ctrl-C stops an answer. Everything else is a question.")

    def _quit(self, *words: str) -> None:
        raise Quit

    def _misused(self, name: str) -> AdaptPruneError:
        arguments, what = self.COMMANDS[name]
        return AdaptPruneError(f"write /{name} {arguments}: {what}.")

    def _target(self, name: str, suffix: str) -> Path:
        """Where to write, if nothing is lost by it."""
        path = Path(name).expanduser().absolute()
        if path.suffix.lower() != suffix:
            raise AdaptPruneError(f"{name!r} is not allowed: the name has to end in {suffix}.")
        if path.exists() and path not in self._written:
            raise AdaptPruneError(f"{name!r} exists already: give another name.")
        if not path.parent.is_dir():
            raise AdaptPruneError(f"there is no folder {str(path.parent)!r}: create it first.")
        return path

    def _wrote(self, path: Path) -> None:
        self._written.add(path)
        self._say(f"wrote {path}")


def _words(text: str) -> list[str]:
    """Arguments as a shell has them: quotes hold a path with spaces together."""
    try:
        return shlex.split(text, posix=os.name != "nt")
    except ValueError as error:
        raise AdaptPruneError(f"{text!r} cannot be read ({error}): close the quotes.") from None
