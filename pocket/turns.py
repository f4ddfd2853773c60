"""Question turns packed behind one picture: many questions share the cost of one set of visual tokens.

Contract: a packed row is what stands ahead of a picture + visual tokens + turns. A turn sees the picture and itself,
never another turn, and its positions start right after the picture; so every turn is, token by token, the prompt that
the exported processor builds. Answers are what the loss is taken on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptprune.tabletop.labels import IGNORE, PatchLabels
from adaptprune.tabletop.questions import Question
from adaptprune.tabletop.scenes import Scene
from adaptprune.tabletop.vocabulary import GRID, PATCH_SIZE
from pocket.architectures import Architecture

IMAGE_TOKENS = GRID * GRID
CAPTION_WEIGHT = 0.25  # a caption is a dozen tokens; unweighted, half of the loss would be captions
STRESS = {"relation": 4.0, "comparing": 3.0, "counting": 2.0, "nearest": 2.0, "caption": CAPTION_WEIGHT}
END_WEIGHT = 0.25  # the end of the answer is easy, but for signs


class Words:
    """Token ids of questions and answers, and of the prompt around them."""

    def __init__(self, architecture: Architecture) -> None:
        self._tokenizer = tokenizer = architecture.make_tokenizer()
        self.ids = tokenizer.get_vocab()
        self.names = {number: name for name, number in self.ids.items()}
        self._known: dict[str, list[int]] = {}
        self.prefix, self.between = self._encode(architecture.before), self._encode(architecture.between)
        self._after, self._suffix = self._encode(architecture.after), self._encode(architecture.suffix)
        self.pad, self._end = self.ids[architecture.pad], self.ids[architecture.eos]
        self._span = architecture.span

    def _encode(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]

    def turn(self, question: Question) -> tuple[list[int], list[int]]:
        """Ids of a question with its prompt words, and ids of the answer with end of sequence."""
        if question.type == "reading":
            # Character by character: the tokenizer would read some signs as words.
            letters = question.answer.lower()
            answer = [self.ids[letters[0]], *(self.ids["##" + letter] for letter in letters[1:])]
        else:
            answer = self._encode(question.answer)
        return self._after + self._encode(question.question) + self._suffix, [*answer, self._end]

    def start(self, pictures: int) -> int:
        """Position of the first token behind so many pictures."""
        return len(self.prefix) + pictures * self._span + (pictures - 1) * len(self.between)


@dataclass
class Packed:
    """The text part of a batch, (B, T) each; ``turn`` is -1 on padding, ``target`` IGNORE where nothing is learnt."""

    ids: Tensor
    turn: Tensor
    position: Tensor
    target: Tensor
    weight: Tensor  # of a target in the loss
    types: list[list[str]]  # of turn t of row b
    pictures: int = 1  # ahead of the turns of a row


def weights(question: Question, prompt: int, answer: int, stress: bool) -> list[float]:
    """Weights of the targets of a turn; ``stress``: more for what is hard, less for the end of the answer."""
    if not stress:
        return [CAPTION_WEIGHT if question.type == "caption" else 1.0] * (prompt + answer)
    weight = STRESS.get(question.type, 1.0)
    end = weight if question.type in ("reading", "caption") else END_WEIGHT
    return [weight] * (prompt + answer - 2) + [end] * 2  # the last target is at the last but one token


def pack(words: Words, asked: list[list[Question]], pictures: int = 1, stress: bool = False) -> Packed:
    """Lay the turns of every row one after another, after ``pictures`` pictures, and pad the rows to one length."""
    rows, types = [], []
    start = words.start(pictures)
    for questions in asked:
        ids, turn, position, target, weight = [], [], [], [], []
        for number, question in enumerate(questions):
            prompt, answer = words.turn(question)
            whole = prompt + answer
            ids += whole
            turn += [number] * len(whole)
            position += range(start, start + len(whole))
            # the token before an answer token has to predict it; after the last there is nothing to predict
            target += [IGNORE] * (len(prompt) - 1) + answer + [IGNORE]
            weight += weights(question, len(prompt), len(answer), stress)
        rows.append((ids, turn, position, target, weight))
        types.append([question.type for question in questions])
    length = max(len(row[0]) for row in rows)
    padded = [
        torch.tensor([row[part] + [filler] * (length - len(row[part])) for row in rows])
        for part, filler in enumerate((words.pad, -1, 0, IGNORE, 0.0))
    ]
    return Packed(*padded, types, pictures)


def mask(packed: Packed, before: int) -> Tensor:
    """Boolean attention mask (B, 1, L, L) with ``before`` prefix and visual tokens ahead of the text."""
    batch, text = packed.turn.shape
    shared = torch.full((batch, before), -2, device=packed.turn.device)
    turn = torch.cat([shared, packed.turn], dim=1)
    order = torch.arange(before + text, device=turn.device)
    causal = order[None, :] <= order[:, None]
    reachable = (turn[:, None, :] == -2) | (turn[:, None, :] == turn[:, :, None])
    return (reachable & causal)[:, None]


def choose_patches(picture: Scene, labels: PatchLabels, count: int, draw: np.random.RandomState) -> np.ndarray:
    """Sorted indices of ``count`` patches for the early phases: one of each thing and character first."""
    if count >= IMAGE_TOKENS:
        return np.arange(IMAGE_TOKENS)
    points = [(thing.x, thing.y) for thing in picture.things]
    if picture.sign is not None:
        points += [(picture.sign.character_x(place), picture.sign.y) for place in range(len(picture.sign.text))]
    limit = GRID - 1
    chosen = {min(limit, int(y / PATCH_SIZE)) * GRID + min(limit, int(x / PATCH_SIZE)) for x, y in points}
    wish = draw.random_sample(IMAGE_TOKENS) + 0.7 * ((labels.thing >= 0) | (labels.character >= 0))
    for index in np.argsort(-wish):
        if len(chosen) >= count:
            break
        chosen.add(int(index))
    return np.array(sorted(chosen)[:count])
