"""What every front end is asked about every family, and the library's own answers, made without any of our engines."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image
from torch import Tensor

import adaptprune
from adaptprune.engines.protocol import Pruning
from adaptprune.methods import make_pruner
from adaptprune.prompts import Turn
from adaptprune.pruner import Pruner
from adaptprune.testing.specimen import VOCABULARY, WORDS
from adaptprune.testing.zoo import SPECIMENS
from tests.families import NO_TEXT, suiting, takes

STEPS = 4
RATIO = 0.25


@dataclass(frozen=True)
class Case:
    """One conversation, and whether it is pruned."""

    name: str
    turns: tuple[Turn, ...]
    pruned: bool = False

    @property
    def images(self) -> list[Image.Image]:
        return [image for turn in self.turns for image in turn.images]


@dataclass(frozen=True)
class Expected:
    """What the library gives."""

    text: str
    prompt_tokens: int
    visual: int
    kept: int


@cache
def outspoken(family: str) -> Any:
    """A family's specimen, of its own for these tests, that answers with words only: every token of an answer shows."""
    one = SPECIMENS[family]("sdpa")
    one.model.generation_config.suppress_tokens = [number for token, number in VOCABULARY.items() if token not in WORDS]
    return one


@cache
def pictures(family: str) -> list[Image.Image]:
    return outspoken(family).pictures(3, seed=5)


def conversations(family: str) -> dict[str, tuple[Turn, ...]]:
    """One picture in front of its question, two among words, and words alone if the family can do without a picture."""
    first, second, third = pictures(family)
    found = {
        "one": (Turn("user", [first, "w3 w4 w5 w6"]),),
        "two": (Turn("user", ["w7 w8", second, "w9 w10", third, "w11 w12 w13"]),),
        "text": (Turn("user", ["w14 w15 w16"]),),
    }
    return {name: turns for name, turns in found.items() if name != "text" or family not in NO_TEXT}


def cases(family: str) -> list[Case]:
    """All of them, unpruned and pruned alternately."""
    return [Case(name, turns, pruned) for name, turns in conversations(family).items() for pruned in (False, True)]


def options(family: str) -> dict[str, Any]:
    """What a request for pruning says."""
    return {**suiting(family), "keep_ratio": RATIO}


def method(family: str) -> str:
    """What suits a family, as a spec without its budget."""
    chosen = suiting(family)
    return f"{chosen.pop('method')}:" + ",".join(f"{name}={value}" for name, value in chosen.items())


def pruner(family: str) -> Pruner:
    return make_pruner(**options(family))


def pruning(family: str, pruned: bool) -> Pruning:
    return Pruning(pruner(family) if pruned else "none")


def written(processor: Any, turns: Sequence[Turn]) -> str:
    """The prompt's text: by the processor's template, or as LLaVA-1.5's where it has none."""
    if hasattr(processor, "apply_chat_template"):
        return processor.apply_chat_template(messages(turns), add_generation_prompt=True)
    names = {"user": "USER: {} ", "assistant": "ASSISTANT: {}</s>"}
    lines = [
        names[turn.role].format("".join(part if isinstance(part, str) else "<image>\n" for part in turn.parts))
        for turn in turns
    ]
    return "".join(lines) + "ASSISTANT:"


def messages(turns: Sequence[Turn], shown: bool = False) -> list[dict[str, Any]]:
    """As transformers has them; with the pictures themselves if `shown`."""

    def part(one: str | Image.Image) -> dict[str, Any]:
        if isinstance(one, str):
            return {"type": "text", "text": one}
        return {"type": "image", **({"image": one} if shown else {})}

    return [{"role": turn.role, "content": [part(one) for one in turn.parts]} for turn in turns]


def model_inputs(family: str, turns: Sequence[Turn]) -> dict[str, Tensor]:
    one = outspoken(family)
    images = [image for turn in turns for image in turn.images]
    kinds = {"return_mm_token_type_ids": True} if takes(one.model, "mm_token_type_ids") else {}
    made = one.processor(
        images=[images] if images else None, text=[written(one.processor, turns)], return_tensors="pt", **kinds
    )
    return {name: value for name, value in made.items() if name != "labels"}


def ask_library(family: str, turns: Sequence[Turn], pruned: bool) -> Expected:
    """Straight from processor and `generate()`."""
    one = outspoken(family)
    inputs = model_inputs(family, turns)
    with adaptprune.prune(one.model, **options(family)) if pruned else nullcontext() as report:
        output = one.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    length = inputs["input_ids"].shape[1]
    assert output.shape[1] == length + STEPS
    text = one.processor.tokenizer.decode(output[0, length:], skip_special_tokens=True).strip()
    return Expected(text, length, report.num_visual if pruned else 0, report.num_kept if pruned else 0)


@cache
def expected(family: str) -> dict[tuple[str, bool], Expected]:
    """By a case's name and whether it is pruned."""
    return {(case.name, case.pruned): ask_library(family, case.turns, case.pruned) for case in cases(family)}
