"""What one engine takes on, and the errors for what it does not. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass

from adaptprune.engines.errors import refused
from adaptprune.engines.sampling import Sampling


@dataclass(frozen=True)
class EngineLimits:
    """What one engine takes on.

    Attributes
    ----------
    max_batch : int
        Rows that are written at the same time (a request with n choices takes n).
    max_queue : int
        Requests that may wait beyond those; one more is refused with 429.
    max_tokens : int
        The most new tokens of one answer.
    max_prompt_tokens : int or None
        None: the model's context.
    timeout : float
        Seconds after which a request is given up.
    prompts_per_step : int
        Prompts that are read between two tokens of the running answers: 1 holds them up least, more is done sooner.
    default_tokens : int or None
        New tokens of an answer for which no number is asked; None: as many as fit.
    hang_after : float
        Seconds of one forward after which the engine counts as hung.
    """

    max_batch: int = 32
    max_queue: int = 128
    max_tokens: int = 2048
    max_prompt_tokens: int | None = None
    timeout: float = 600.0
    hang_after: float = 120.0
    prompts_per_step: int = 1
    default_tokens: int | None = None

    def check(self, sampling: Sampling) -> None:
        """Raise EngineError for what is asked for beyond these limits."""
        if sampling.n > self.max_batch:
            raise refused(f"n={sampling.n} is not allowed: use 1 to {self.max_batch}.", "n")
        if sampling.max_tokens is not None and sampling.max_tokens > self.max_tokens:
            wanted = f"max_tokens={sampling.max_tokens}"
            raise refused(f"{wanted} is not allowed: this server writes at most {self.max_tokens}.", "max_tokens")

    def room(self, length: int, context: int | None, sampling: Sampling) -> int:
        """How many tokens the answer to a prompt of `length` tokens may have.

        Raises
        ------
        EngineError
            400 if the prompt, or the prompt and what is asked for, is too long.
        """
        if self.max_prompt_tokens is not None and length > self.max_prompt_tokens:
            raise refused(
                f"the prompt has {length} tokens (images included), more than the {self.max_prompt_tokens} that this "
                "server takes.",
                "messages",
                "context_length_exceeded",
            )
        room = self.max_tokens if context is None else min(self.max_tokens, context - length)
        wanted = sampling.max_tokens or 1
        if room < wanted:
            raise refused(
                f"the prompt has {length} tokens (images included) and max_tokens={wanted}: together more than the "
                f"model's context of {context}. Shorten the conversation, or use fewer images or new tokens.",
                "messages",
                "context_length_exceeded",
            )
        return sampling.max_tokens or min(room, self.default_tokens or room)
