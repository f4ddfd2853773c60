"""What an engine refuses or fails at: a code for programs and a message for people. No HTTP here.

Codes are stable names; messages name the value, what is allowed and what to do.
"""

from __future__ import annotations

from adaptprune.errors import AdaptPruneError


class EngineError(AdaptPruneError):
    """A request that is not answered, and why.

    Parameters
    ----------
    code : str
        A stable name for programs ("context_length_exceeded").
    message : str
        One or two sentences for people.
    param : str, optional
        The part of the request that is at fault.
    retry_after : int, optional
        Seconds after which it may work.
    """

    def __init__(self, code: str, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.param, self.retry_after = param, retry_after


def refused(message: str, param: str | None = None, code: str = "invalid_value") -> EngineError:
    """A mistake in what was asked."""
    return EngineError(code, message, param=param)


def shutting_down() -> EngineError:
    """The engine takes nothing more."""
    return EngineError("shutting_down", "the server is shutting down: send the request to another one.")


def too_late() -> EngineError:
    """A request's time is over."""
    return EngineError("deadline_exceeded", "the request was not finished within its time: ask for fewer tokens.")


def from_exception(error: BaseException) -> EngineError:
    """What to tell about an exception of the engine; never its traceback."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, AdaptPruneError):
        return refused(str(error), "pruning", "bad_pruning_options")
    if out_of_memory(error):
        return EngineError(
            "out_of_memory",
            "the model ran out of memory on this request: use fewer or smaller images, a smaller max_tokens, or a "
            "smaller keep_ratio, or try again when fewer requests are running.",
            retry_after=5,
        )
    return EngineError(
        "internal_error", f"the engine failed with {type(error).__name__}: the server's log has the details."
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whichever device."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)
