"""Errors as the OpenAI API has them: an engine's, and those of HTTP itself. No web framework here."""

from __future__ import annotations

from typing import Any

from adaptprune.engines.errors import EngineError

#: HTTP status by the code of an engine's error; 400 for all others.
STATUSES = {
    "queue_full": 429,
    "internal_error": 500,
    "not_a_number": 500,
    "out_of_memory": 503,
    "shutting_down": 503,
    "deadline_exceeded": 504,
}


#: Characters of an error's message, whatever it quotes.
MAX_MESSAGE = 2000


class ServeError(EngineError):
    """A request that is not answered for a reason of HTTP's own.

    Parameters
    ----------
    status : int
        HTTP status.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(code, message, param=param, retry_after=retry_after)
        self.status = status


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ServeError:
    """A mistake in the request."""
    return ServeError(400, code, message, param=param)


def status_of(error: EngineError) -> int:
    """The HTTP status of an error."""
    return error.status if isinstance(error, ServeError) else STATUSES.get(error.code, 400)


def error_object(error: EngineError) -> dict[str, Any]:
    """The error object of the OpenAI API."""
    status = status_of(error)
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    message = error.message if len(error.message) <= MAX_MESSAGE else error.message[: MAX_MESSAGE - 3] + "..."
    return {"error": {"message": message, "type": kind, "param": error.param, "code": error.code}}
