"""Tabletop: made-up pictures of a table with coloured shapes and a sign, and questions about them.

``scene(split, index)`` says what is on the table, ``render`` draws it at 336 x 336 pixels, ``questions`` asks about it
and ``patch_labels`` tells what each of the 24 x 24 patches shows. Everything is deterministic and made on the fly, so
there is no data set to download; the splits ``train``, ``validation``, ``test``, ``hard`` (fuller and finer) and
``plain`` (one to three things on ground of one colour) share no scene. Needs numpy and Pillow only.

>>> from adaptprune.tabletop import questions, render, scene
>>> first = scene("test", 0)
>>> render(first).size
(336, 336)
>>> {question.type for question in questions(first)} >= {"existence", "counting"}
True
"""

from adaptprune.tabletop.labels import IGNORE, PatchLabels, patch_labels
from adaptprune.tabletop.questions import QUESTION_TYPES, Question, is_right, pair_question, questions
from adaptprune.tabletop.render import render
from adaptprune.tabletop.scenes import Background, Clutter, Scene, Sign, Thing, scene
from adaptprune.tabletop.vocabulary import CHARACTERS, COLOUR_NAMES, GRID, IMAGE_SIZE, PATCH_SIZE, SHAPES, SPLITS

__all__ = [
    "CHARACTERS",
    "COLOUR_NAMES",
    "GRID",
    "IGNORE",
    "IMAGE_SIZE",
    "PATCH_SIZE",
    "QUESTION_TYPES",
    "SHAPES",
    "SPLITS",
    "Background",
    "Clutter",
    "PatchLabels",
    "Question",
    "Scene",
    "Sign",
    "Thing",
    "is_right",
    "pair_question",
    "patch_labels",
    "questions",
    "render",
    "scene",
]
