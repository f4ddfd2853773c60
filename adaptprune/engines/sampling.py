"""How an answer is chosen from a model's scores, and how long it may be. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaptprune.checks import whole
from adaptprune.errors import AdaptPruneError


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen; None stands for the checkpoint's own default (`generation_config.json`).

    Attributes
    ----------
    max_tokens : int or None
        None: as many as fit the context and the server's limit.
    temperature : float or None
        0 is greedy.
    top_p : float or None
        Nucleus sampling, in (0, 1].
    seed : int or None
        Makes sampling repeatable; choice i of n uses seed + i.
    stop : tuple of str
        The answer ends before the first of these.
    n : int
        Choices; they share one reading of the prompt.
    ignore_eos : bool
        Go on to max_tokens, for load tests.
    top_k : int or None
        Sample among that many tokens; 0: among all.
    min_p : float or None
        Leave out tokens less probable than this share of the likeliest one.
    repetition_penalty : float or None
        Above 1: tokens of the prompt and the answer become less probable.
    logprobs : int or None
        List the tokens with their log probabilities, and so many alternatives to each.
    schema : str or None
        JSON schema that the answer keeps to.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    ignore_eos: bool = False
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    logprobs: int | None = None
    schema: str | None = None

    def leave_out(self, names: Sequence[str], why: str) -> None:
        """Raise AdaptPruneError, for the reason `why`, if one of these is asked for."""
        given = [name for name in names if getattr(self, name) != getattr(Sampling, name)]
        if given:
            raise AdaptPruneError(f"{why}: leave out {', '.join(given)}.")

    def check(self) -> None:
        """Raise AdaptPruneError for numbers that no engine can use."""
        if self.max_tokens is not None:
            whole("max_new_tokens", self.max_tokens, 1, 2**31)
        if self.seed is not None:
            whole("seed", self.seed, 0, 2**63 - 1)
        if self.temperature is not None and self.temperature != 0 and not 0.01 <= self.temperature <= 100:
            raise AdaptPruneError(f"temperature={self.temperature} is not allowed: use 0 (greedy), or 0.01 to 100.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise AdaptPruneError(f"top_p={self.top_p:g} is not allowed: use a number above 0 and at most 1.")
