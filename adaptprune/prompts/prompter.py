"""A conversation to the model's own prompt: chat template, placeholders, processor. No web framework here."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import jinja2
from PIL import Image
from torch import Tensor

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams import processors

#: How many prompts can be prepared at the same time; each holds its images and a copy of the processor.
WORKERS = 2


class PromptError(AdaptPruneError):
    """A conversation that the model cannot be asked; `code` is a stable name for programs."""

    def __init__(self, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.code = code


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
    """Builds model inputs; safe to call from several threads, of which `WORKERS` get on at a time.

    Parameters
    ----------
    processor
        The model's processor.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._idle: SimpleQueue[Any] = SimpleQueue()  # a fast tokenizer may not be used by two threads at once
        for _ in range(WORKERS):
            self._idle.put(copy.deepcopy(processor))

    def tokenizer(self) -> Any:
        """A tokenizer of its own for another thread."""
        return copy.deepcopy(processors.tokenizer_of(self._processor))

    def text(self, turns: Sequence[Turn]) -> str:
        """The prompt as text, with one placeholder per image.

        Raises
        ------
        PromptError
            The text contains the image placeholder itself, is no valid Unicode, or the model's template refuses it.
        """
        token = processors.image_token(self._processor)
        for turn in turns:
            for part in turn.parts:
                if isinstance(part, str):
                    _check_text(part, token)
        if not processors.has_template(self._processor):  # base checkpoints of LLaVA-1.5 have none
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
            return processors.templated(self._processor, messages)
        except jinja2.TemplateError as error:
            raise PromptError(f"the model's chat template refuses these messages: {error}.") from None

    def inputs(self, turns: Sequence[Turn]) -> dict[str, Tensor]:
        """Model inputs on the CPU: a batch of one."""
        images = [image for turn in turns for image in turn.images]
        text = self.text(turns)
        processor = self._idle.get()
        try:
            # nested: one list of images per prompt, which every processor reads alike
            made = processor(images=[images] if images else None, text=[text], return_tensors="pt")
            return processors.model_inputs(made)
        except (ValueError, TypeError, IndexError) as error:
            # what image processors raise for a picture that they cannot tile or scale
            message = f"the model's processor cannot use this request: {error}"
            raise PromptError(message, "bad_image") from error
        finally:
            self._idle.put(processor)


def _check_text(text: str, token: str) -> None:
    if token in text:
        raise PromptError(
            f"a text contains the image placeholder {token!r}: leave it out, images are given beside the text."
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError("a text holds half of a surrogate pair: send valid Unicode.") from None


def _vicuna(turns: Sequence[Turn], token: str) -> str:
    """LLaVA-1.5's conversation format."""
    words = []
    for turn in turns:
        body = "".join(part if isinstance(part, str) else f"{token}\n" for part in turn.parts)
        words.append({"user": f"USER: {body} ", "assistant": f"ASSISTANT: {body}</s>", "system": f"{body} "}[turn.role])
    text = "".join(words)
    return text.removesuffix("</s>") if turns[-1].role == "assistant" else text + "ASSISTANT:"
