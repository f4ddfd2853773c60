"""From token ids to text, piece by piece: whole characters only, and nothing of a stop string. No models."""

from __future__ import annotations

from typing import Any

#: What a tokenizer puts in place of bytes that are no character yet.
UNFINISHED = "\ufffd"


class Detokenizer:
    """Text of a growing list of tokens.

    Decoding single tokens would lose spaces and split characters, so the last few tokens are decoded together, with and
    without the new ones, and the difference is new text. (`tokenizers.decoders.DecodeStream` does the same but never
    gives away an unfinished character at the end, and works with fast tokenizers only.)

    Parameters
    ----------
    tokenizer
        Used from one thread at a time.

    Attributes
    ----------
    length : int
        Characters given so far.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._read = self.length = 0

    def push(self, token: int) -> str:
        """The text that a token finishes; empty if a character is still incomplete."""
        self._ids.append(token)
        before, now = self._decode(self._ids[self._start : self._read]), self._decode(self._ids[self._start :])
        if len(now) <= len(before) or now.endswith(UNFINISHED):
            return ""
        self._start, self._read = self._read, len(self._ids)
        self.length += len(now) - len(before)
        return now[len(before) :]

    def flush(self) -> str:
        """What is left at the end, an incomplete character included."""
        before, now = self._decode(self._ids[self._start : self._read]), self._decode(self._ids[self._start :])
        self._start = self._read = len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class StopText:
    """Lets text through until one of the stop strings appears; holds back what might be the beginning of one.

    Attributes
    ----------
    stopped : bool
        A stop string was found; it and all that follows is dropped.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of what was held back and `text` that can be shown."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        held = self._held + text
        found = [place for place in (held.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)]
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
