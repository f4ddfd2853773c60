"""What answers a chat's questions: the protocol, and the one that asks a server. No terminal here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from adaptprune.checks import whole
from adaptprune.engines.client import Client, Cost, Request, ServedModel, data_url, message
from adaptprune.errors import AdaptPruneError
from adaptprune.registry import did_you_mean


@dataclass(frozen=True)
class Said:
    """One message of the conversation; images stand in front of the text. `names` is where they came from."""

    role: str
    text: str
    images: tuple[Image.Image, ...] = ()
    names: tuple[str, ...] = ()


@dataclass
class Settings:
    """How questions are answered.

    Attributes
    ----------
    method : str
        A name or spec; "none" is unpruned. A server's own default if None.
    keep_ratio : float or None
        Overrides the method's own.
    reselect : bool
        Choose anew among all visual tokens of the conversation at every question.
    """

    method: str | None = "adaptprune"
    keep_ratio: float | None = None
    reselect: bool = True
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None

    def check(self) -> None:
        """Raise AdaptPruneError for numbers that no backend can use."""
        whole("max_new_tokens", self.max_new_tokens, 1, 2**31)
        if self.temperature != 0 and not 0.01 <= self.temperature <= 100:
            raise AdaptPruneError(f"temperature={self.temperature:g} is not allowed: use 0 (greedy), or 0.01 to 100.")
        for name, value in (("top_p", self.top_p), ("keep_ratio", self.keep_ratio)):
            if value is not None and not 0 < value <= 1:
                raise AdaptPruneError(f"{name}={value:g} is not allowed: use a number above 0 and at most 1.")
        if self.seed is not None:
            whole("seed", self.seed, 0, 2**63 - 1)


@dataclass
class Reply:
    """An answer and what it cost; None for what a server does not report.

    Attributes
    ----------
    prompt_tokens, read_tokens : int or None
        Tokens of the conversation, and those of them that were not in the KV cache.
    stopped : bool
        It was cut off by the person who asked.
    """

    text: str
    prompt_tokens: int | None = None
    read_tokens: int | None = None
    new_tokens: int | None = None
    first_token_ms: float | None = None
    total_ms: float | None = None
    visual_tokens: int | None = None
    visual_tokens_kept: int | None = None
    method: str | None = None
    stopped: bool = False
    overlay: Image.Image | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """One line for people."""
        parts = []
        if self.visual_tokens:
            parts.append(f"kept {self.visual_tokens_kept} of {self.visual_tokens} visual tokens")
        if self.read_tokens is not None:
            parts.append(f"read {self.read_tokens} of {self.prompt_tokens} tokens")
        elif self.prompt_tokens is not None:
            parts.append(f"{self.prompt_tokens} tokens")
        if self.first_token_ms:
            parts.append(f"first token {self.first_token_ms:.0f} ms")
        if self.stopped:
            parts.append("stopped")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "overlay"}


class Backend(Protocol):
    """Answers conversations."""

    #: Whether answers continue over a kept cache, so that `Settings.reselect` makes a difference.
    keeps_cache: bool
    name: str

    def check(self, settings: Settings) -> None:
        """Raise AdaptPruneError for settings that cannot be used."""

    def ask(
        self,
        said: Sequence[Said],
        settings: Settings,
        on_text: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> Reply:
        """Answer the last message; AdaptPruneError if that does not work."""

    def reset(self) -> None:
        """Forget what was kept of earlier questions."""

    def close(self) -> None:
        """Give everything back."""


class ServerBackend:
    """Asks an OpenAI-compatible server, which reads the whole conversation at every question.

    Parameters
    ----------
    client : Client
    model : str, optional
        One of those that it serves; left out, the first.
    """

    keeps_cache = False

    def __init__(self, client: Client, model: str | None = None) -> None:
        served = {each.name: each for each in client.models()}
        if model is not None and model not in served:
            raise AdaptPruneError(f"the server has no model {model!r}.{did_you_mean(model, served)}")
        self._client = client
        self._model: ServedModel = served[model] if model else next(iter(served.values()))
        self.name = f"{self._model.name} at {client.url}"

    def check(self, settings: Settings) -> None:
        settings.check()
        if settings.method in (None, "none"):
            return
        assert settings.method is not None
        name, known = settings.method.partition(":")[0], self._model.methods
        if known is not None and name not in known:
            raise AdaptPruneError(f"the server has no method {name!r}.{did_you_mean(name, known)}")

    def ask(
        self,
        said: Sequence[Said],
        settings: Settings,
        on_text: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> Reply:
        request = Request(
            self._model.name,
            [message(each.role, each.text, [data_url(image) for image in each.images]) for each in said],
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            pruning=pruning_of(settings.method, settings.keep_ratio),
            want_overlay=settings.method != "none" and (self._model.methods is not None or settings.method is not None),
        )
        pieces: list[str] = []
        cost = Cost()
        answer = self._client.stream(request)
        try:
            for piece in answer:
                if isinstance(piece, Cost):
                    cost = piece
                    break
                pieces.append(piece)
                on_text(piece)
                if stopping():
                    return Reply("".join(pieces), stopped=True)
        except KeyboardInterrupt:  # a wait for the server need not end; what has come so far stays
            return Reply("".join(pieces), stopped=True)
        finally:
            answer.close()  # type: ignore[attr-defined]
        return Reply(
            "".join(pieces),
            cost.prompt_tokens,
            None,
            cost.completion_tokens,
            cost.first_token_ms,
            cost.total_ms,
            cost.visual_tokens,
            cost.visual_tokens_kept,
            cost.method,
            overlay=cost.overlay,
        )

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


def pruning_of(method: str | None, keep_ratio: float | None) -> dict[str, Any] | None:
    """A request's "pruning"; None leaves it to the server."""
    if method == "none":
        return {"method": "none"}
    given = {"method": method, "keep_ratio": keep_ratio}
    return {name: value for name, value in given.items() if value is not None} or None
