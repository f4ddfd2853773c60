"""Tabletop: made-up scenes, ten types of questions about one picture and one about two."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

from PIL import Image

from adaptprune.errors import AdaptPruneError
from adaptprune.eval.task import Item
from adaptprune.registry import did_you_mean
from adaptprune.tabletop import COLOUR_NAMES, QUESTION_TYPES, SHAPES, SPLITS, is_right, questions, render, scene

QUESTIONS_PER_PICTURE = 8


class Tabletop:
    """Questions about `pictures` scenes of a split, eight about each.

    Parameters
    ----------
    split : str
        "train", "validation" or "test".
    pictures : int
    kinds : sequence of str
        Question types; more than eight take turns from picture to picture.
    """

    name = "tabletop"

    def __init__(self, split: str = "test", pictures: int = 2000, kinds: Sequence[str] = QUESTION_TYPES) -> None:
        if split not in SPLITS:
            raise AdaptPruneError(f"unknown split {split!r}.{did_you_mean(split, SPLITS)}")
        if pictures < 1:
            raise AdaptPruneError(f"pictures={pictures} is not allowed: use 1 or more.")
        for kind in kinds:
            if kind not in QUESTION_TYPES:
                raise AdaptPruneError(f"unknown question type {kind!r}.{did_you_mean(kind, QUESTION_TYPES)}")
        self.split, self.pictures, self.kinds = split, pictures, tuple(kinds)

    def settings(self) -> dict[str, object]:
        return {"split": self.split, "pictures": self.pictures, "kinds": list(self.kinds)}

    def items(self) -> list[Item]:
        found = []
        for index in range(self.pictures):
            order = itertools.islice(itertools.cycle(self.kinds), index, index + len(self.kinds))
            asked = questions(scene(self.split, index), types=list(order))[:QUESTIONS_PER_PICTURE]
            for number, question in enumerate(asked):
                found.append(
                    Item(
                        id=f"{self.split}-{index}-{number}",
                        picture=f"{self.split}-{index}",
                        images=partial(_pictures, self.split, index),
                        prompt=question.question,
                        expected=question.answer,
                        kind=question.type,
                        marks=question.marks,
                    )
                )
        return found

    def score(self, item: Item, answer: str) -> float:
        if item.kind == "caption":
            return mentioned(answer, item.expected)
        return float(is_right(answer, item.expected))


def _pictures(split: str, *indices: int) -> list[Image.Image]:
    return [render(scene(split, index)) for index in indices]


def mentioned(answer: str, expected: str) -> float:
    """F1 of the coloured shapes that a caption mentions against those that it should."""
    said, wanted = _objects(answer), _objects(expected)
    both = len(said & wanted)
    return 2 * both / (len(said) + len(wanted)) if both else 0.0


def _objects(text: str) -> set[tuple[str, str]]:
    words = text.lower().replace(",", " ").replace(".", " ").split()
    return {pair for pair in itertools.pairwise(words) if pair[0] in COLOUR_NAMES and pair[1] in SHAPES}
