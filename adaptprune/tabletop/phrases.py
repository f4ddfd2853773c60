"""How Tabletop words its questions: several plain English phrasings per type.

Contract: templates only. ``{x}`` and ``{y}`` are references such as "red circle", ``{a}`` the article that fits ``{x}``
and ``{xs}``, ``{ys}`` plurals. "colour" is replaced by "color" in half of the questions, so both spellings are seen.
"""

from collections.abc import Iterator
from typing import Final

from adaptprune.tabletop.vocabulary import CHARACTERS, COLOUR_NAMES, COLUMNS, PLURALS, ROWS, SHAPES

NOUNS: Final = ("object", "thing", "item")
PLURAL_NOUNS: Final = ("objects", "things", "items")

TEMPLATES: Final[dict[str, tuple[str, ...]]] = {
    "existence": (
        "Is there {a} {x}?",
        "Is there {a} {x} in the picture?",
        "Does the picture contain {a} {x}?",
        "Does the image show {a} {x}?",
        "Can you see {a} {x}?",
        "Do you see {a} {x} on the table?",
    ),
    "counting": (
        "How many {xs} are there?",
        "How many {xs} are in the picture?",
        "How many {xs} can you see?",
        "Count the {xs}.",
        "What is the number of {xs}?",
    ),
    "colour": (
        "What colour is the {x}?",
        "What is the colour of the {x}?",
        "Which colour is the {x}?",
        "Which colour does the {x} have?",
        "Name the colour of the {x}.",
    ),
    "shape": (
        "What shape is the {x}?",
        "What is the shape of the {x}?",
        "Which shape is the {x}?",
        "Which shape does the {x} have?",
        "Name the shape of the {x}.",
    ),
    "where": (
        "Where is the {x}?",
        "Where is the {x} in the picture?",
        "In which part of the picture is the {x}?",
        "Where can you see the {x}?",
    ),
    "left": ("Is the {x} to the left of the {y}?", "Is the {x} left of the {y}?"),
    "right": ("Is the {x} to the right of the {y}?", "Is the {x} right of the {y}?"),
    "above": ("Is the {x} above the {y}?", "Is the {x} higher than the {y}?"),
    "below": ("Is the {x} below the {y}?", "Is the {x} lower than the {y}?"),
    "nearest colour": (
        "What colour is the object nearest to the {x}?",
        "Which colour does the thing closest to the {x} have?",
        "What is the colour of the nearest item to the {x}?",
    ),
    "nearest shape": (
        "What shape is nearest to the {x}?",
        "Which shape does the thing closest to the {x} have?",
        "What is the shape of the object nearest to the {x}?",
    ),
    "bigger": ("Is the {x} bigger than the {y}?", "Is the {x} larger than the {y}?"),
    "more": ("Are there more {xs} than {ys}?", "Do you see more {xs} than {ys}?"),
    "reading": (
        "What does the sign say?",
        "What is written on the sign?",
        "Read the sign.",
        "Which text is on the sign?",
    ),
    "caption": ("Describe the picture.", "What is in the picture?", "What do you see?", "Describe the image."),
    "two_images": (
        "Which picture contains {a} {x}, the first or the second?",
        "In which image is there {a} {x}, the first or the second?",
    ),
}


def article(phrase: str) -> str:
    """The indefinite article that fits a phrase."""
    return "an" if phrase[0] in "aeiou" else "a"


def words() -> Iterator[str]:
    """Every word and mark that questions and answers can hold, lower-case, with repeats."""
    for templates in TEMPLATES.values():
        for template in templates:
            bare = template.lower()
            for mark in ("{a}", "{x}", "{y}", "{xs}", "{ys}"):
                bare = bare.replace(mark, " ")
            for mark in "?.,":
                bare = bare.replace(mark, f" {mark} ")
            yield from bare.split()
    yield from ("a", "an", "and", "the", "color", "colour", "yes", "no", "first", "second", "centre", "center")
    yield from (*COLOUR_NAMES, *SHAPES, *PLURALS.values(), *NOUNS, *PLURAL_NOUNS, *ROWS, *COLUMNS)
    yield from (str(number) for number in range(13))
    yield from CHARACTERS.lower()
