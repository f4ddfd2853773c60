"""Batches for the language model: scenes, which patches they keep, their questions and what these refer to.

Contract: ``sample`` is a function of its arguments alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptprune.tabletop.labels import IGNORE, PatchLabels, patch_labels
from adaptprune.tabletop.questions import Question, pair_question, questions
from adaptprune.tabletop.scenes import Scene
from adaptprune.tabletop.vocabulary import CHARACTERS, COLOUR_NAMES, COLUMNS, ROWS, SHAPES
from pocket.looking import Looks, find_looks
from pocket.mentions import NUMBERS, Mentions, find_mentions, numbers_of
from pocket.plans import Phase
from pocket.turns import Packed, Words, choose_patches, pack

PAIR_TURNS = 12  # questions about two pictures behind one row of them


def align_targets(picture: Scene, labels: PatchLabels) -> np.ndarray:
    """Entries of the word groups for all patches, (5, 576): colour, shape, row, column, character."""
    on_thing = labels.thing >= 0
    which = np.where(on_thing, labels.thing, 0)
    cells = [thing.cell.split() for thing in picture.things]
    rows = np.array([ROWS.index(cell[0]) for cell in cells])[which]
    columns = np.array([COLUMNS.index(cell[1]) for cell in cells])[which]
    inside = labels.position > 0
    character = np.where(labels.character == IGNORE, IGNORE, labels.character + len(CHARACTERS) * inside)
    shape = np.where(on_thing, labels.shape, IGNORE)
    where = [np.where(on_thing, values, IGNORE) for values in (rows, columns)]
    return np.stack([labels.colour, shape, *where, character])


def number_targets(picture: Scene, labels: PatchLabels) -> np.ndarray:
    """Place and size of the thing on every patch, (576, 3); NaN where there is none."""
    table = np.array([*map(numbers_of, picture.things), [np.nan] * NUMBERS], dtype=np.float32)
    return table[labels.thing]


GROUP_NAMES = ("colour", "shape", "row", "column", "character")


def centre_targets(picture: Scene, labels: PatchLabels) -> np.ndarray:
    """1 on the patch that holds the centre of its thing, 0 on its other patches, IGNORE elsewhere, (576,)."""
    inside = (np.abs(labels.offset) <= 0.5).all(axis=1)
    return np.where(labels.thing >= 0, inside.astype(np.int64), IGNORE)


def area_targets(labels: PatchLabels) -> np.ndarray:
    """Logarithm of how many patches the thing on a patch has in all, (576,); NaN where there is no thing.

    Patches that know this can be summed with a weight of 1 / area, which counts things and not patches.
    """
    sizes = np.bincount(labels.thing + 1, minlength=2).astype(np.float32)
    sizes[0] = np.nan
    return np.log(np.maximum(sizes, 1))[labels.thing + 1]


@dataclass
class Sample:
    """Scenes of a batch, which patches they keep and their questions."""

    scenes: list[Scene]
    labels: list[PatchLabels]
    keep: Tensor
    packed: Packed
    targets: dict[str, Tensor]
    mentions: Mentions
    looks: Looks | None = None
    pairs: Packed | None = None

    def kept(self, features: Tensor) -> Tensor:
        """The kept ones of all patches, (B, K, D)."""
        return features.gather(1, self.keep[:, :, None].expand(-1, -1, features.shape[-1]))

    def paired(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Kept features and patches of the rows of two pictures, (P, 2K, D) and (P, 2K)."""
        assert self.pairs is not None
        rows = len(self.pairs.ids)
        return kept[: 2 * rows].reshape(rows, -1, kept.shape[-1]), self.keep[: 2 * rows].reshape(rows, -1)


def pair_questions(first: Scene, second: Scene, seed: int, count: int) -> list[Question]:
    """Different questions about two pictures, at most ``count``."""
    made = (pair_question(first, second, seed * 2 * count + number) for number in range(2 * count))
    return list({question.question: question for question in made if question is not None}.values())[:count]


def is_simple(question: Question) -> bool:
    """False for existence questions that name both a colour and a shape, the last to be learnt."""
    known = question.question.rstrip("?").split()
    return question.type != "existence" or not (set(known) & set(COLOUR_NAMES) and set(known) & set(SHAPES))


def sample(words: Words, scenes: list[Scene], phase: Phase, seed: int, looking: bool = False) -> Sample:
    """Questions, kept patches and targets for some scenes; with ``looking``, also where attention should look."""
    draw = np.random.RandomState(seed)
    labels = [patch_labels(s) for s in scenes]
    keep = np.stack([choose_patches(s, t, phase.tokens, draw) for s, t in zip(scenes, labels, strict=True)])
    asked = [questions(s, seed, phase.types, phase.per_type) for s in scenes]
    if phase.simple:
        asked = [[question for question in turns if is_simple(question)] for turns in asked]
    truth = np.stack([align_targets(s, t)[:, k] for s, t, k in zip(scenes, labels, keep, strict=True)])
    targets = {name: torch.from_numpy(truth[:, i]) for i, name in enumerate(GROUP_NAMES)}
    numbers = np.stack([number_targets(s, t)[k] for s, t, k in zip(scenes, labels, keep, strict=True)])
    centre = np.stack([centre_targets(s, t)[k] for s, t, k in zip(scenes, labels, keep, strict=True)])
    targets["centre"] = torch.from_numpy(centre)
    areas = np.stack([area_targets(t)[k] for t, k in zip(labels, keep, strict=True)])
    targets["area"] = torch.from_numpy(areas)
    targets["numbers"] = torch.from_numpy(numbers)
    targets["thing"] = torch.from_numpy(np.stack([t.thing[k] for t, k in zip(labels, keep, strict=True)]))
    pairs = None
    if phase.pairs and (seed - 1) % phase.pair_every == 0:
        twos = zip(scenes[: 2 * phase.pairs : 2], scenes[1 : 2 * phase.pairs : 2], strict=True)
        pairs = pack(words, [pair_questions(one, two, seed, PAIR_TURNS) for one, two in twos], pictures=2)
    found = find_mentions(words, scenes, asked)
    packed = pack(words, asked, stress=phase.stress)
    looks = find_looks(found, labels, keep) if looking else None
    return Sample(scenes, labels, torch.from_numpy(keep), packed, targets, found, looks, pairs)
