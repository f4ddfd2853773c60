"""Conversations to a model's inputs, for every family: chat template, placeholders, processor. No engines here."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from queue import SimpleQueue
from typing import Any

import jinja2
from PIL import Image
from torch import Tensor

from adaptprune.hooks.seams import processors
from adaptprune.prompts.crops import note_crop
from adaptprune.prompts.formats import MODEL, format_of
from adaptprune.prompts.turns import PromptError, Turn, images_of

#: How many prompts can be prepared at the same time; each holds its images and a copy of the processor.
WORKERS = 2
#: Widths and heights of pictures that show which tokens pictures put into prompts: some have tiles, rows or columns.
SHOWN = ((64, 64), (2048, 512), (512, 2048), (2048, 2048))


class Prompter:
    """Builds model inputs; safe to call from several threads, of which `WORKERS` get on at a time.

    Parameters
    ----------
    processor
        The model's processor.
    model : optional
        Processors leave out what some models of theirs need; known from the model, that is asked for.
    protocol : str
        "model" or "llava-1.5", see `adaptprune.prompts.formats`.
    """

    def __init__(self, processor: Any, model: Any = None, protocol: str = MODEL) -> None:
        self.format = format_of(protocol, processor)
        self._processor = processor
        self._options = processors.options_for(model) if model is not None else {}
        self._idle: SimpleQueue[Any] = SimpleQueue()  # a fast tokenizer may not be used by two threads at once
        for _ in range(WORKERS):
            self._idle.put(copy.deepcopy(processor))

    @property
    def template(self) -> str:
        """The Jinja template that conversations are written by."""
        return self.format.template or processors.template(self._processor)

    def tokenizer(self) -> Any:
        """A tokenizer of its own for another thread."""
        return copy.deepcopy(processors.tokenizer_of(self._processor))

    def text(self, turns: Sequence[Turn]) -> str:
        """The prompt as text, with one placeholder per image.

        Raises
        ------
        PromptError
            The text contains a placeholder itself, is no valid Unicode, or the model's template refuses it.
        """
        with self._borrowed() as processor:
            return self._text(processor, turns)

    def inputs(self, *conversations: Sequence[Turn], **options: Any) -> dict[str, Tensor]:
        """Model inputs on the CPU: a batch of as many rows as there are conversations, padded as the tokenizer pads.

        Parameters
        ----------
        *conversations : sequence of Turn
        **options
            Of the processor (the size of its pictures, say).

        Raises
        ------
        PromptError
            As `text`, or the processor cannot use a picture.
        """
        with self._borrowed() as processor:
            texts = [self._text(processor, turns) for turns in conversations]
            images = [self._pictures(turns) for turns in conversations]
            wanted: dict[str, Any] = {"return_tensors": "pt", **self._options, **options}
            if len(texts) > 1:
                wanted["padding"] = True
            if processors.begun(processor, texts[0]):
                wanted["add_special_tokens"] = False
            try:
                note_crop(processor, [image for row in images for image in row])
                # nested: one list of images per prompt, which every processor reads alike
                made = processor(images=images if any(images) else None, text=texts, **wanted)
            except MemoryError:
                raise
            except Exception as error:
                raise _unusable(error, any(images)) from error
        return processors.model_inputs(made)

    @contextmanager
    def _borrowed(self) -> Iterator[Any]:
        processor = self._idle.get()
        try:
            yield processor
        finally:
            self._idle.put(processor)

    def _pictures(self, turns: Sequence[Turn]) -> list[Image.Image]:
        return [self.format.picture(self._processor, image) for image in images_of(turns)]

    def _text(self, processor: Any, turns: Sequence[Turn]) -> str:
        if not turns:
            raise PromptError("there is no message to answer: give one.")
        for turn in turns:
            self._check(processor, turn.text)
            if len(turn.texts) > 1:  # templates may trim each of them
                self._check(processor, "".join(map(str.strip, turn.texts)))
        return self._written(turns)

    def _written(self, turns: Sequence[Turn]) -> str:
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
        continuing = bool(turns) and turns[-1].role == "assistant"
        try:
            return processors.templated(self._processor, messages, self.format.template, continuing=continuing)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise PromptError(f"the model's chat template refuses these messages: {error}.") from None

    def _check(self, processor: Any, text: str) -> None:
        """Refuse what the model would take for a picture: by name, and by the ids that the tokenizer makes of it."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PromptError("a text holds half of a surrogate pair: send valid Unicode.") from None
        named = next((token for token in processors.placeholders(processor) if token in text), None)
        if named is None:
            tokenizer = processors.tokenizer_of(processor)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] if self._added else ()
            special = self._added.intersection(ids)
            found = special & self._of_pictures if special else set()
            named = tokenizer.convert_ids_to_tokens(min(found)) if found else None
        if named is not None:
            raise PromptError(
                f"a text contains the image placeholder {named!r}: leave it out, images are given beside the text."
            )

    @cached_property
    def _added(self) -> frozenset[int]:
        """Tokens that may stand for pictures; some tokenizers have thousands, so they are listed once."""
        return processors.added_ids(self._processor)

    @cached_property
    def _of_pictures(self) -> frozenset[int]:
        """Added tokens that a picture puts into a prompt, with those that differ from them in numbers only.

        A larger picture than those tried here may have a seventh row, or a twelfth tile.
        """
        processor = copy.deepcopy(self._processor)  # the lent ones may all be out
        tokenizer = processors.tokenizer_of(processor)
        text = self._written([Turn("user", [Image.new("RGB", SHOWN[0]), "a"])])
        found: set[int] = set()
        for size in SHOWN:
            pictures = [self.format.picture(processor, Image.new("RGB", size, "grey"))]
            try:
                made = processor(images=[pictures], text=[text], return_tensors="pt")
            except MemoryError:
                raise
            except Exception:  # it refuses pictures of this shape, so that none will ever be shown
                continue
            found.update(made["input_ids"].flatten().tolist())
        plain = set(tokenizer(self._written([Turn("user", ["a"])]))["input_ids"])
        added = {number: _numberless(tokenizer, number) for number in self._added - plain}
        shapes = {added[number] for number in found.intersection(added)}
        return frozenset(number for number, shape in added.items() if shape in shapes)


def _unusable(error: Exception, shown: bool) -> PromptError:
    """Why a processor failed: pictures are what differs from prompt to prompt; there are many that cannot be scaled."""
    why = str(error) or type(error).__name__
    if shown:
        return PromptError(f"the model's processor cannot use this request: {why}", "bad_image")
    return PromptError(f"the model's processor takes no question without a picture ({why}): show one with it.")


def _numberless(tokenizer: Any, number: int) -> str:
    """A token with all of its numbers made one and the same."""
    return re.sub(r"\d+", "0", str(tokenizer.convert_ids_to_tokens(number)))
