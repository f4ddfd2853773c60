"""What goes wrong, said once: a status, a code for programs and a message for people. No web framework here.

Codes are stable names; messages name the value, what is allowed and what to do.
"""

from __future__ import annotations

from typing import Any

from adaptprune.errors import AdaptPruneError


class ServeError(Exception):
    """A request that is not answered, and why.

    Parameters
    ----------
    status : int
        HTTP status.
    code : str
        A stable name for programs ("context_length_exceeded").
    message : str
        One or two sentences for people.
    param : str, optional
        The part of the request that is at fault.
    retry_after : int, optional
        Seconds after which it may work.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after = param, retry_after

    def to_dict(self) -> dict[str, Any]:
        """The error object of the OpenAI API."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ServeError:
    """A mistake in the request."""
    return ServeError(400, code, message, param=param)


def from_exception(error: BaseException) -> ServeError:
    """What to tell a client about an exception of the engine; never its traceback."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, AdaptPruneError):
        return bad_request(str(error), "pruning", "bad_pruning_options")
    if out_of_memory(error):
        return ServeError(
            503,
            "out_of_memory",
            "the model ran out of memory on this request: use fewer or smaller images, a smaller max_tokens, or a "
            "smaller keep_ratio, or try again when fewer requests are running.",
            retry_after=5,
        )
    return ServeError(
        500,
        "internal_error",
        f"the engine failed with {type(error).__name__}: the server's log has the details.",
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whichever device."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)
