"""Exact answers of an exported model on Tabletop, through its processor, its chat template and ``generate()``.

Contract: ``python -m pocket.evaluate --model DIR`` prints a table and then one JSON line. Nothing of the training code
is used; with ``--prune`` the model is pruned by the library itself while it answers.
"""

import argparse
import contextlib
import json
import math
from collections import Counter
from typing import Any

import torch
from tqdm import tqdm

import adaptprune
from adaptprune.hooks.seams.processors import options_for, templated
from adaptprune.tabletop import QUESTION_TYPES, Question, is_right, questions, render, scene


def wilson(right: int, asked: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson)."""
    if asked == 0:
        return 0.0, 1.0
    z, share = 1.96, right / asked
    centre = share + z * z / (2 * asked)
    spread = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    return (centre - spread) / (1 + z * z / asked), (centre + spread) / (1 + z * z / asked)


def pick(split: str, types: list[str], count: int, first: int) -> list[tuple[int, Question]]:
    """``count`` questions of every type, at most one of a type on a picture: independent, as the interval assumes."""
    found: Counter[str] = Counter()
    chosen = []
    index = first
    while any(found[name] < count for name in types):
        for question in questions(scene(split, index), 1, [name for name in types if found[name] < count]):
            found[question.type] += 1
            chosen.append((index, question))
        index += 1
    return chosen


def prompt(processor: Any, question: Question) -> str:
    """The text of a question about one picture."""
    content = [{"type": "image"}, {"type": "text", "text": question.question}]
    return templated(processor, [{"role": "user", "content": content}])


@torch.no_grad()
def answer(model: Any, processor: Any, split: str, asked: list[tuple[int, Question]], batch: int) -> list[str]:
    """Greedy answers, decoded."""
    answers = []
    for start in tqdm(range(0, len(asked), batch), "answers", mininterval=5):
        part = asked[start : start + batch]
        inputs = processor(
            images=[render(scene(split, index)) for index, _ in part],
            text=[prompt(processor, question) for _, question in part],
            padding=True,
            return_tensors="pt",
            **options_for(model),
        ).to(model.device, model.dtype)
        generated = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        answers += processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def score(asked: list[tuple[int, Question]], answers: list[str]) -> dict[str, dict[str, float]]:
    """Accuracy by type and by mark, with n and interval."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for (_, question), given in zip(asked, answers, strict=True):
        for name in (question.type, *question.marks):
            total[name] += 1
            right[name] += is_right(given, question.answer)
    table = {}
    for name in total:
        low, high = wilson(right[name], total[name])
        table[name] = {"right": right[name] / total[name], "n": total[name], "low": low, "high": high}
    return table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="adaptprune/assets/pocket")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--types", nargs="+", default=list(QUESTION_TYPES[:9]))
    parser.add_argument("--count", type=int, default=200, help="questions of each type")
    parser.add_argument("--first", type=int, default=1000, help="index of the first picture")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prune", help='for example "random:keep_ratio=0.1,layer=2"')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, processor = adaptprune.load(options.model, dtype=options.dtype, device=options.device)
    asked = pick(options.split, options.types, options.count, options.first)
    pruning: Any = contextlib.nullcontext()
    if options.prune:
        pruning = adaptprune.prune(model, options.prune)
    with pruning:
        answers = answer(model, processor, options.split, asked, options.batch)
    table = score(asked, answers)
    for name, row in table.items():
        print(
            f"{name:14s} {100 * row['right']:5.1f} %  [{100 * row['low']:.1f}, {100 * row['high']:.1f}]  n = {row['n']}"
        )
    print(json.dumps({"model": options.model, "split": options.split, "prune": options.prune, "table": table}))


if __name__ == "__main__":
    main()
