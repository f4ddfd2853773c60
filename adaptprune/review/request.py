"""What is asked of the judge: one request per question and variant. Knows no file and no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, str]]


class Unparsable(ValueError):
    """The judge's reply holds no score that can be read; the message says why."""


@dataclass(frozen=True)
class Request:
    """One review to ask for.

    Attributes
    ----------
    question_id : int or str
        As the question file has it.
    variant : str
        Which of the reviews of this question: "reference first", "ours first", "run 1" …
    messages : list of dict
        The chat, as the API takes it.
    fields : mapping
        What the record of this review says besides (category, answer ids).
    parse : callable
        The judge's text to what the record says of the score; raises `Unparsable`.
    """

    question_id: int | str
    variant: str
    messages: Messages
    fields: Mapping[str, Any]
    parse: Callable[[str], dict[str, Any]]

    @property
    def key(self) -> tuple[str, str]:
        return str(self.question_id), self.variant


def without_thoughts(reply: str) -> str:
    """The reply after a leading ``<think>…</think>``, which some servers leave in the text."""
    text = reply.strip()
    if text.startswith("<think>") and "</think>" in text:
        return text.partition("</think>")[2].strip()
    return text
