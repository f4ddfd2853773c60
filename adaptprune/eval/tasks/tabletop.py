"""Tabletop: made-up scenes, ten types of questions about one picture and one about two."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

from PIL import Image

from adaptprune.errors import AdaptPruneError
from adaptprune.eval.task import Item, Task
from adaptprune.registry import did_you_mean
from adaptprune.tabletop import (
    COLOUR_NAMES,
    QUESTION_TYPES,
    SHAPES,
    SPLITS,
    Question,
    is_right,
    pair_question,
    questions,
    render,
    scene,
)

QUESTIONS_PER_PICTURE = 8
PAIR = "two_images"  # asked about a picture and the next one
KINDS = (*QUESTION_TYPES, PAIR)


class Tabletop(Task):
    """Questions about `pictures` scenes of a split, eight about each.

    Parameters
    ----------
    split : str
        "train", "validation", "test", "hard" (16 to 28 things) or "plain" (one to three, on flat ground).
    pictures : int
    kinds : sequence of str
        Question types out of `KINDS`; more than eight take turns from picture to picture.
    """

    name = "tabletop"
    title = "made-up scenes of coloured shapes; needs no files"
    metric = "share of right answers, by type of question"

    def __init__(self, split: str = "test", pictures: int = 40, kinds: Sequence[str] = KINDS) -> None:
        if split not in SPLITS:
            raise AdaptPruneError(f"unknown split {split!r}.{did_you_mean(split, SPLITS)}")
        if pictures < 1:
            raise AdaptPruneError(f"pictures={pictures} is not allowed: use 1 or more.")
        for kind in kinds:
            if kind not in KINDS:
                raise AdaptPruneError(f"unknown question type {kind!r}.{did_you_mean(kind, KINDS)}")
        self.split, self.pictures, self.kinds = split, pictures, tuple(kinds)

    def settings(self) -> dict[str, object]:
        return {"split": self.split, "pictures": self.pictures, "kinds": list(self.kinds)}

    def items(self) -> list[Item]:
        found = []
        for index in range(self.pictures):
            order = list(itertools.islice(itertools.cycle(self.kinds), index, index + len(self.kinds)))
            here = scene(self.split, index)
            asked = questions(here, types=[kind for kind in order if kind != PAIR])
            pair = pair_question(here, scene(self.split, index + 1)) if PAIR in order[:QUESTIONS_PER_PICTURE] else None
            asked = asked[: QUESTIONS_PER_PICTURE - (pair is not None)]
            found += [self._item(index, number, question, index) for number, question in enumerate(asked)]
            if pair is not None:
                found.append(self._item(index, len(asked), pair, index, index + 1))
        return found

    def _item(self, index: int, number: int, question: Question, *pictures: int) -> Item:
        return Item(
            id=f"{self.split}-{index}-{number}",
            picture="+".join(f"{self.split}-{picture}" for picture in pictures),
            images=partial(_pictures, self.split, *pictures),
            prompt=question.question,
            expected=question.answer,
            kind=question.type,
            marks=question.marks,
        )

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
