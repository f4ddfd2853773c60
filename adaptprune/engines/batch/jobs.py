"""One request on its way through the engine: what was asked, how far it is, what came out. Plain data, no threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaptprune.engines.batch.grammar import Grammar
from adaptprune.engines.batch.scores import TokenScore, TokenScores
from adaptprune.engines.batch.vocabulary import ByteText, Vocabulary
from adaptprune.engines.errors import EngineError
from adaptprune.engines.sampling import Sampling
from adaptprune.prompts.text import Detokenizer, StopText
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class ImageUse:
    """One image: its visual tokens before and after, and on request where the kept ones stand.

    Attributes
    ----------
    kept : list of (int, int, int) or None
        Grid (tile or frame of this image, from 0), row and column of each kept token.
    grids : list of (int, int)
        Rows and columns of each grid.
    """

    visual_tokens: int
    visual_tokens_kept: int
    grids: list[tuple[int, int]]
    kept: list[tuple[int, int, int]] | None = None


@dataclass
class Usage:
    """What an answer cost. Times are host time in milliseconds from when the request was taken in.

    Attributes
    ----------
    queue_ms : float
        From then until its prompt was read (image decoding included).
    prefill_ms : float
        Reading the prompt, image encoding and selection included.
    encode_ms : float
        What the vision tower took for these pictures, when it ran; 0 where that is not measured.
    selection_ms : float
        Capturing cues and selecting.
    first_token_ms, total_ms : float
    kv_bytes, kv_bytes_unpruned : int
        KV cache of the prompt, and what it would be without pruning.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    encode_ms: float = 0.0
    method: str | None = None
    images: list[ImageUse] = field(default_factory=list)
    selection_ms: float = 0.0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    kv_bytes: int = 0
    kv_bytes_unpruned: int = 0

    @property
    def visual_tokens(self) -> int:
        return sum(image.visual_tokens for image in self.images)

    @property
    def visual_tokens_kept(self) -> int:
        return sum(image.visual_tokens_kept for image in self.images)

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "visual_tokens": self.visual_tokens,
            "visual_tokens_kept": self.visual_tokens_kept,
        }


@dataclass(frozen=True)
class Delta:
    """A piece of a choice's text; `finish` is "stop" or "length" in its last one, `tokens` empty unless asked for."""

    index: int
    text: str
    finish: str | None = None
    tokens: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Done:
    """The last event of an answer. `overlay` is a PIL image of what was kept; None unless it was asked for."""

    usage: Usage
    overlay: Any = None


@dataclass(frozen=True)
class Failed:
    """The last event of a request that is not answered, or not to its end."""

    error: EngineError


Event = Delta | Done | Failed


@dataclass(eq=False)
class Job:
    """A request. Made by `Engine.open`; events arrive through `on_event`, called from the engine's thread."""

    sampling: Sampling
    pruner: Pruner | None
    on_event: Callable[[Event], None]
    deadline: float  # by time.monotonic
    want_kept: bool = False
    want_overlay: bool = False
    opened: float = field(default_factory=time.perf_counter)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    images: list[Any] = field(default_factory=list)  # PIL; for the overlay, and for what the engine remembers
    encoding: dict[str, Any] = field(default_factory=dict)  # options of the model's encode calls
    max_tokens: int = 0
    grammar: Grammar | None = None  # at its beginning
    vocabulary: Vocabulary | None = None  # only if logprobs or a grammar need it
    cancelled: bool = False
    closed: bool = False
    rows: int = 0  # choices still being written
    usage: Usage = field(default_factory=Usage)
    picture: Any = None  # the overlay

    def milliseconds(self) -> float:
        """Since the request was taken in."""
        return 1000 * (time.perf_counter() - self.opened)


@dataclass(eq=False)
class Row:
    """One choice of a job: a row of the running batch."""

    job: Job
    index: int
    prompt: Tensor  # (1, L) token ids
    position: Tensor  # (..., 1, 1) of the token that was read last; leading axes for M-RoPE
    processors: Any
    generator: torch.Generator | None  # None: greedy
    text: Detokenizer | ByteText
    stops: StopText
    eos: frozenset[int]
    grammar: Grammar | None = None
    scores: TokenScores | None = None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    def choose(self, scores: Tensor) -> int:
        """The next token from this row's scores, (1, vocabulary), float32."""
        if self.processors:
            written = torch.tensor([self.tokens], dtype=self.prompt.dtype, device=self.prompt.device)
            scores = self.processors(torch.cat([self.prompt, written], dim=1), scores)
        if self.generator is None:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator))

    def accept(self, token: int, scores: Tensor) -> Delta:
        """Note a token, chosen by `scores` (vocabulary,); the text it finishes, and whether the answer ends with it."""
        self.tokens.append(token)
        complete = self.grammar is not None and self.grammar.accept(token)
        at_end = token in self.eos and not self.job.sampling.ignore_eos
        if self.scores is not None and not at_end:
            self.scores.note(token, scores, self.text.length)
        shown, finish = self._shown(token, at_end, complete)
        self.ended = finish is not None
        if self.scores is None:
            return Delta(self.index, shown, finish)
        listed = self.scores.release(shown, rest=self.ended and not self.stops.stopped)
        return Delta(self.index, shown, finish, listed)

    def _shown(self, token: int, at_end: bool, complete: bool) -> tuple[str, str | None]:
        shown, finish = "", "stop" if at_end or complete else None
        if not at_end:
            shown = self.stops.push(self.text.push(token))
            if self.stops.stopped:
                return shown, "stop"
            if finish is None and len(self.tokens) >= self.job.max_tokens:
                finish = "length"
        if finish is not None:
            shown += self.stops.push(self.text.flush())
            if self.stops.stopped:
                finish = "stop"
            shown += self.stops.flush()
        return shown, finish
