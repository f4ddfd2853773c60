"""From a request's bytes to a `ChatRequest`, or an error that names the part at fault; bounded, whatever is sent.

Memory and time for reading JSON grow with the number of its members, far more than with its bytes: an image is one
long string. So members are counted before anything is parsed. The count holds the interpreter for moments only, and so
does what is left to parse then; other requests are answered meanwhile.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from adaptprune.registry import did_you_mean
from adaptprune.serve.errors import ServeError, bad_request
from adaptprune.serve.schemas import ChatRequest, Message, StreamOptions, not_carried_out

#: Keys, strings and values of one request, in all its depth; 1,000 messages of ten parts have 70,000.
MAX_MEMBERS = 100_000
#: Quotation marks inside strings; there may be no more characters than that in all messages.
MAX_ESCAPED = 400_000
#: Bytes of everything that is no string: numbers, white space, brackets.
MAX_STRUCTURE = 4 * 2**20
#: Backslashes in all strings; base64 with "\/" for every slash has half a million in 32 MiB.
MAX_BACKSLASHES = 2_000_000
#: Bytes that are looked through at a time.
STEP = 2**20
#: Bytes of one key.
MAX_KEY = 10_000
#: Characters of a key or value that an error shows.
SHOWN = 80

_UNSUPPORTED = {name for kind in (ChatRequest, Message, StreamOptions) for name in not_carried_out(kind)}


def parse(body: bytes) -> ChatRequest:
    """A request from its JSON.

    Raises
    ------
    ServeError
        400 that names the part at fault.
    """
    check_size(body)
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        problem = _explain(error)
    try:
        raise problem  # here: in the `except`, it would keep the other error, and with it the request's data
    finally:
        del problem  # so would the circle of an error, its traceback and this function's variables


def check_size(body: bytes) -> None:
    """Refuse JSON with too many members, without parsing it.

    Raises
    ------
    ServeError
        400.
    """
    place = members = structure = 0
    strings = _Strings(body)
    while place < len(body):
        quote = body.find(b'"', place)
        end = len(body) if quote < 0 else quote
        structure += end - place
        if structure > MAX_STRUCTURE:
            raise _too_much(f"{MAX_STRUCTURE:,} bytes besides its strings")
        piece = body[place:end]
        members += piece.count(b",") + piece.count(b"[") + piece.count(b"{") + 1
        if members > MAX_MEMBERS:
            raise _too_much(f"{MAX_MEMBERS:,} keys and values in all")
        if quote < 0:
            return
        place = strings.end(quote + 1)
        if place - quote > MAX_KEY and body[place : place + 100].lstrip()[:1] == b":":
            name = cut(body[quote + 1 : quote + 2 * SHOWN].decode("utf-8", "replace"))
            problem = f"unknown parameter {name!r}: no key has more than {MAX_KEY:,} bytes."
            raise bad_request(problem, name, "unknown_parameter")


class _Strings:
    """Finds where the strings of a body end, and counts what is escaped in them."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._escaped = self._backslashes = 0

    def end(self, start: int) -> int:
        """The place behind the string whose first character is at `start`."""
        place = start
        while True:
            close = self._body.find(b'"', place)
            self._count(place, len(self._body) if close < 0 else close)
            if close < 0:
                return len(self._body)
            if not _is_escaped(self._body, start, close):
                return close + 1
            self._escaped += 1
            if self._escaped > MAX_ESCAPED:
                raise _too_much(f"{MAX_ESCAPED:,} escaped quotation marks")
            place = close + 1

    def _count(self, start: int, stop: int) -> None:
        for place in range(start, stop, STEP):  # in steps that hold the interpreter for a moment
            self._backslashes += self._body.count(b"\\", place, min(place + STEP, stop))
            if self._backslashes > MAX_BACKSLASHES:
                raise _too_much(f"{MAX_BACKSLASHES:,} backslashes")


def _too_much(what: str) -> ServeError:
    return bad_request(f"the body has more than {what}: send less.", None, "invalid_json")


def _is_escaped(body: bytes, start: int, place: int) -> bool:
    """Whether an odd number of backslashes stands before `place`, not looking beyond `start`."""
    width = 16
    while True:
        tail = body[max(start, place - width) : place]
        run = len(tail) - len(tail.rstrip(b"\\"))
        if run < len(tail) or place - width <= start:
            return run % 2 == 1
        width *= 4


# -- errors -----------------------------------------------------------------------------------------------------------


def cut(text: str) -> str:
    """A text that an error may show."""
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def shown(value: Any) -> str:
    """A value that an error may show, however large or deep it is."""
    if isinstance(value, str):
        return cut(repr(value[: SHOWN + 1]))
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return cut(repr(value))


def _explain(error: ValidationError) -> ServeError:
    """The first problem, in words; of the alternatives at its place, the one that came furthest."""
    problems = error.errors(include_url=False)
    problem = max(
        (one for one in problems if one["loc"][:3] == problems[0]["loc"][:3]), key=lambda one: len(one["loc"])
    )
    kind, place = problem["type"], problem["loc"]
    param = _path(place)
    if kind == "json_invalid":
        message = cut(problem["msg"].removeprefix("Invalid JSON: "))
        return bad_request(f"the body is not valid JSON: {message}.", None, "invalid_json")
    if kind == "extra_key":
        return _unknown(param, **problem["ctx"])
    if not place:
        return bad_request("the body is not a JSON object.", None, "invalid_type")
    if kind in ("missing", "no_content"):
        param = f"{param}.content" if kind == "no_content" else param
        return bad_request(f"{param} is missing.", param, "missing_required_parameter")
    if kind == "no_parts":
        return bad_request(f"{param}.content has no parts: write a text.", f"{param}.content")
    unsupported = next((str(part) for part in place if part in _UNSUPPORTED), None)
    if unsupported is not None:
        return not_supported(unsupported)
    if kind == "union_tag_invalid":
        message = f"{param}: only parts of type 'text' and 'image_url' are supported."
        return bad_request(message, param, "unsupported_parameter")
    text = f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
    instead = "" if kind.startswith("too_") else f", not {shown(problem['input'])}"
    return bad_request(f"{param}: {text}{instead}.", param)


def not_supported(name: str) -> ServeError:
    """400 for a parameter of the OpenAI API that this server does not carry out."""
    message = f"{name} is not supported by this server: leave it out. Supported: {', '.join(ChatRequest.supported())}."
    return bad_request(message, name, "unsupported_parameter")


def _unknown(inside: str, key: str, allowed: list[str]) -> ServeError:
    name = cut(key)
    param = f"{inside}.{name}" if inside else name
    return bad_request(f"unknown parameter {param!r}.{did_you_mean(name, allowed)}", param, "unknown_parameter")


def _path(place: tuple[int | str, ...]) -> str:
    """The place of a problem as messages[0].content[1].text; names of alternatives in it are pydantic's, not ours."""
    path = ""
    for before, part in zip((None, *place), place, strict=False):
        if isinstance(part, int):
            path += f"[{part}]"
        elif isinstance(before, int) and part in ("text", "image_url", "input_text", "output_text", "input_image"):
            continue  # the alternative that a part's type chose
        elif re.fullmatch(r"\w{1,80}", part) and part not in ("str", "int", "float", "bool"):
            path += f".{part}" if path else part
    return path or cut(".".join(cut(str(part)) for part in place[:4]))
