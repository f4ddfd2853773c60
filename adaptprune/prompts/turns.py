"""A conversation: turns of texts and pictures in their order, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from adaptprune.errors import AdaptPruneError


class PromptError(AdaptPruneError):
    """A conversation that the model cannot be asked; `code` is a stable name for programs."""

    def __init__(self, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Turn:
    """One message. An assistant's as the last one is continued.

    Attributes
    ----------
    role : str
        "system", "user" or "assistant".
    parts : sequence of str or PIL image
        In their order. A text alone is one part.
    """

    role: str
    parts: Sequence[str | Image.Image]

    def __post_init__(self) -> None:
        """A text is a sequence, too, of letters."""
        if isinstance(self.parts, str):
            object.__setattr__(self, "parts", (self.parts,))

    @property
    def images(self) -> list[Image.Image]:
        """The images of this message, in their order."""
        return [part for part in self.parts if not isinstance(part, str)]

    @property
    def texts(self) -> list[str]:
        """The texts of this message, in their order."""
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def text(self) -> str:
        """They, one after another."""
        return "".join(self.texts)


def images_of(turns: Sequence[Turn]) -> list[Image.Image]:
    """All images of a conversation, in their order."""
    return [image for turn in turns for image in turn.images]


def question(text: str, images: Sequence[Image.Image] = ()) -> list[Turn]:
    """A conversation of one question, with its images in front."""
    return [Turn("user", [*images, text])]
