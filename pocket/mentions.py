"""What the words of a question refer to: extra targets that teach the language model to look things up.

Contract: a mention is a phrase such as "red circle" inside a question. At its last word the hidden state must say, some
layers before the answer is due, how many things fit the phrase and, where exactly one does, what and where it is and
what lies next to it. Linear heads read this; they are thrown away after training, like those of the tower.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptprune.tabletop.labels import IGNORE
from adaptprune.tabletop.phrases import NOUNS, PLURAL_NOUNS
from adaptprune.tabletop.questions import Question
from adaptprune.tabletop.scenes import Scene, Thing
from adaptprune.tabletop.vocabulary import COLOUR_NAMES, COLUMNS, IMAGE_SIZE, PLURALS, ROWS, SHAPES
from pocket.shares import MOST
from pocket.turns import Words

LOOKUP_LAYER, NEIGHBOUR_LAYER = 3, 4  # layers after which the heads read
LOOKUP = {"count": MOST + 1, "colour": len(COLOUR_NAMES), "shape": len(SHAPES), "row": 3, "column": 3}
NEIGHBOUR = {"near colour": len(COLOUR_NAMES), "near shape": len(SHAPES)}
COMPARED = ("left", "above", "smaller", "fewer")  # what the first of two phrases can be, compared with the second
COUNT_WEIGHTS = (0.5, 0.3, *[1.5] * (MOST - 1))
NUMBERS = 3  # x, y, radius
SPAN = IMAGE_SIZE / 6  # pixels that count as 1 in the numbers

_SHAPE_OF = {**{shape: shape for shape in SHAPES}, **{plural: shape for shape, plural in PLURALS.items()}}


@dataclass
class Mentions:
    """All mentions of a batch; classes are IGNORE and numbers NaN where they do not apply."""

    row: Tensor  # (M,) picture of the batch
    place: Tensor  # (M,) index in the packed text
    classes: Tensor  # (M, 7), in the order of LOOKUP and then NEIGHBOUR
    numbers: Tensor  # (M, 3)
    compared: Tensor  # (M, 4) of the second phrase of a question, in the order of COMPARED: 0 or 1
    fits: list[list[int]]  # indices of the things that fit
    near: list[int | None]  # index of the thing next to the only one that fits


def phrases(tokens: list[str], bare_nouns: bool) -> list[tuple[int, str | None, str | None]]:
    """Phrases of a question: index of the last word, colour and shape; "objects" alone only if ``bare_nouns``."""
    found = []
    for index, token in enumerate(tokens):
        colour = tokens[index - 1] if index and tokens[index - 1] in COLOUR_NAMES else None
        if token in _SHAPE_OF:
            found.append((index, colour, _SHAPE_OF[token]))
        elif token in (*NOUNS, *PLURAL_NOUNS) and (colour or bare_nouns):
            found.append((index, colour, None))
    return found


def nearest_thing(picture: Scene, here: Thing) -> int | None:
    """Index of the thing next to another, None where a second one is about as near."""
    others = sorted((math.hypot(t.x - here.x, t.y - here.y), i) for i, t in enumerate(picture.things) if t != here)
    if len(others) < 2 or others[1][0] <= 1.1 * others[0][0]:
        return None
    return others[0][1]


def numbers_of(thing: Thing) -> list[float]:
    """Place and size, each with a spread of about 2."""
    return [thing.x / SPAN, thing.y / SPAN, thing.radius / SPAN * 4]


def truth(picture: Scene, fits: list[int], near: int | None) -> tuple[list[int], list[float]]:
    """Classes and numbers of one mention."""
    if len(fits) != 1:
        return [min(len(fits), MOST), *[IGNORE] * 6], [math.nan] * NUMBERS
    thing = picture.things[fits[0]]
    row, column = thing.cell.split()
    other = None if near is None else picture.things[near]
    beside = [IGNORE] * 2 if other is None else [COLOUR_NAMES.index(other.colour), SHAPES.index(other.shape)]
    what = [COLOUR_NAMES.index(thing.colour), SHAPES.index(thing.shape), ROWS.index(row), COLUMNS.index(column)]
    return [1, *what, *beside], numbers_of(thing)


def compare(first: list[float], second: list[float], counts: tuple[int, int]) -> list[int]:
    """Whether each of COMPARED holds, IGNORE where it is too close to tell or does not apply."""
    margins = (0.2, 0.2, 0.3)  # in the units of the numbers; NaN is never above them
    pairs = zip(first, second, margins, strict=True)
    found = [int(one < other) if abs(one - other) > margin else IGNORE for one, other, margin in pairs]
    return [*found, int(counts[0] < counts[1]) if counts[0] != counts[1] else IGNORE]


def find_mentions(words: Words, scenes: list[Scene], asked: list[list[Question]]) -> Mentions:
    """Mentions of all questions, laid out as ``turns.pack`` lays out the turns."""
    rows, places, classes, numbers, compared, meant, nexts = [], [], [], [], [], [], []
    for row, (picture, questions) in enumerate(zip(scenes, asked, strict=True)):
        start = 0
        for question in questions:
            prompt, answer = words.turn(question)
            tokens = [words.names[token] for token in prompt]
            before = None
            for index, colour, shape in phrases(tokens, question.type == "counting"):
                fits = [
                    i for i, t in enumerate(picture.things) if colour in (None, t.colour) and shape in (None, t.shape)
                ]
                near = nearest_thing(picture, picture.things[fits[0]]) if len(fits) == 1 else None
                kinds, values = truth(picture, fits, near)
                compared.append([IGNORE] * 4 if before is None else compare(before[1], values, (before[0], kinds[0])))
                before = (kinds[0], values)
                rows.append(row)
                places.append(start + index)
                classes.append(kinds)
                numbers.append(values)
                meant.append(fits)
                nexts.append(near)
            start += len(prompt) + len(answer)
    shaped = torch.tensor(classes, dtype=torch.long).view(-1, len(LOOKUP) + len(NEIGHBOUR))
    floats = torch.tensor(numbers, dtype=torch.float32).view(-1, NUMBERS)
    pairs = torch.tensor(compared, dtype=torch.long).view(-1, len(COMPARED))
    where = torch.tensor([rows, places], dtype=torch.long)
    return Mentions(where[0], where[1], shaped, floats, pairs, meant, nexts)


class MentionHeads(nn.Module):
    """Linear read-outs of the hidden states at mentions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lookup = nn.Linear(width, sum(LOOKUP.values()) + NUMBERS)
        self.neighbour = nn.Linear(width, sum(NEIGHBOUR.values()))

    def forward(
        self, states: tuple[Tensor, Tensor], mentions: Mentions, many: bool = False
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss, and the share of right answers by name, from the text states (B, T, D) after the two layers.

        With ``many``, counts other than 1 weigh more: most phrases fit one thing, which teaches little about counting.
        """
        early, late = (F.rms_norm(s[mentions.row, mentions.place], s.shape[-1:]) for s in states)
        *kinds, numbers = self.lookup(early).split([*LOOKUP.values(), NUMBERS], dim=-1)
        kinds += self.neighbour(late).split(list(NEIGHBOUR.values()), dim=-1)
        terms, right = [], {}
        for number, (name, logits) in enumerate(zip((*LOOKUP, *NEIGHBOUR), kinds, strict=True)):
            target = mentions.classes[:, number]
            valid = target != IGNORE
            if valid.any():
                weight = logits.new_tensor(COUNT_WEIGHTS) if many and name == "count" else None
                factor = 1 if weight is None else 2
                terms.append(factor * F.cross_entropy(logits[valid], target[valid], weight))
                right[name] = (logits[valid].argmax(-1) == target[valid]).float().mean().item()
        known = ~mentions.numbers[:, 0].isnan()
        if known.any():
            terms.append(2 * F.smooth_l1_loss(numbers[known], mentions.numbers[known], beta=0.25))
            right["error"] = (numbers[known] - mentions.numbers[known]).abs().mean().item()
        return torch.stack(terms).mean() if terms else early.sum() * 0, right


class CompareHead(nn.Module):
    """Linear read-out of how two phrases of a question compare, at the second one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.compare = nn.Linear(width, len(COMPARED))

    def forward(self, late: Tensor, mentions: Mentions) -> tuple[Tensor, dict[str, float]]:
        """Loss and share of right answers by name, from the text states (B, T, D) after the neighbour layer."""
        logits = self.compare(F.rms_norm(late[mentions.row, mentions.place], late.shape[-1:]))
        valid = mentions.compared != IGNORE
        hits = (logits > 0) == (mentions.compared == 1)
        right = {name: hits[:, i][valid[:, i]].float().mean().item() for i, name in enumerate(COMPARED)}
        return F.binary_cross_entropy_with_logits(logits[valid], mentions.compared[valid].float()), right
