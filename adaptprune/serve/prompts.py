"""A conversation to the model's own prompt: chat template, placeholders, processor. No web framework here."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import jinja2
from PIL import Image
from torch import Tensor

from adaptprune.serve.errors import ServeError, bad_request


@dataclass(frozen=True)
class Turn:
    """One message. `parts` are texts and images in their order.

    Attributes
    ----------
    role : str
        "system", "user" or "assistant".
    parts : sequence of str or PIL image
    """

    role: str
    parts: Sequence[str | Image.Image]

    @property
    def images(self) -> list[Image.Image]:
        """The images of this message, in their order."""
        return [part for part in self.parts if not isinstance(part, str)]


class Prompter:
    """Builds model inputs; safe to call from several threads.

    Parameters
    ----------
    processor
        The model's processor.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._lock = Lock()  # a fast tokenizer may not be used by two threads at once

    def tokenizer(self) -> Any:
        """A tokenizer of its own for another thread."""
        return copy.deepcopy(self._processor.tokenizer)

    def text(self, turns: Sequence[Turn]) -> str:
        """The prompt as text, with one placeholder per image.

        Raises
        ------
        ServeError
            The text contains the image placeholder itself, is no valid Unicode, or the model's template refuses it.
        """
        token = getattr(self._processor, "image_token", "<image>")
        for turn in turns:
            for part in turn.parts:
                if isinstance(part, str):
                    _check_text(part, token)
        if not getattr(self._processor, "chat_template", None):  # base checkpoints of LLaVA-1.5 have none
            return _vicuna(turns, token)
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in turn.parts
                ],
            }
            for turn in turns
        ]
        try:
            text: str = self._processor.apply_chat_template(messages, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise bad_request(f"the model's chat template refuses these messages: {error}.", "messages") from None
        return text

    def inputs(self, turns: Sequence[Turn]) -> dict[str, Tensor]:
        """Model inputs on the CPU: a batch of one."""
        images = [image for turn in turns for image in turn.images]
        with self._lock:
            text = self.text(turns)
            try:
                return dict(self._processor(images=images or None, text=[text], return_tensors="pt"))
            except (ValueError, TypeError, IndexError) as error:
                # what image processors raise for a picture that they cannot tile or scale
                raise ServeError(
                    400, "bad_image", f"the model's processor cannot use this request: {error}", param="messages"
                ) from error


def _check_text(text: str, token: str) -> None:
    if token in text:
        raise bad_request(
            f"a text contains the image placeholder {token!r}: leave it out and send the image as an image_url part.",
            "messages",
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_request("a text holds half of a surrogate pair: send valid Unicode.", "messages") from None


def _vicuna(turns: Sequence[Turn], token: str) -> str:
    """LLaVA-1.5's conversation format."""
    words = []
    for turn in turns:
        body = "".join(part if isinstance(part, str) else f"{token}\n" for part in turn.parts)
        words.append({"user": f"USER: {body} ", "assistant": f"ASSISTANT: {body}</s>", "system": f"{body} "}[turn.role])
    return "".join(words) + "ASSISTANT:"
