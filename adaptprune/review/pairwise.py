"""LLaVA's pairwise review: the judge reads two answers to a question and scores both on one scale.

Three forms, told apart by the context file, as in LLaVA's three scripts:

- no context (``eval_gpt_review``): question and answers alone; a category without a rule uses "default";
- captions and boxes (``eval_gpt_review_visual``, the qa90 questions): categories conv, detail, complex;
- a caption only (``eval_gpt_review_bench``, LLaVA-Bench-in-the-Wild): the same categories after ``llava_bench_``.

Answers are joined by question_id, not by line. The layout of the message is LLaVA's; the words of the instruction come
from the rule file, and the system message from `SYSTEM` or the caller. The rules that come with the package were
written for it; give LLaVA's rule.json as a file to compare with published scores.

Source: https://github.com/haotian-liu/LLaVA, llava/eval
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from adaptprune.errors import AdaptPruneError
from adaptprune.registry import did_you_mean
from adaptprune.review.files import Row, read_by, read_object
from adaptprune.review.judge import Judge
from adaptprune.review.request import Messages, Request, Unparsable, without_thoughts
from adaptprune.review.run import Outcome, Progress, carry_out, first

#: LLaVA's settings.
DEFAULTS = {"temperature": 0.2, "max_tokens": 1024}
SYSTEM = "You compare answers about images. Be strict, careful and fair."
REFERENCE_FIRST, OURS_FIRST = "reference first", "ours first"
BENCH = "llava_bench_"
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_MARKUP = r"[\s*_`()\[\]]*"
_PAIR = re.compile(f"{_MARKUP}{_NUMBER}[\\s*_`,;]+{_NUMBER}{_MARKUP}")


@dataclass(frozen=True)
class Rule:
    """How one category is judged: what the parties are called, the instruction, the ends of the scale."""

    role: str
    prompt: str
    low: float = 1.0
    high: float = 10.0


def load_rules(path: Path | None = None) -> dict[str, Rule]:
    """A rule file in LLaVA's form, ``{category: {"role": …, "prompt": …}}``; default: the package's own.

    A rule may also hold ``"scale": [low, high]`` if its prompt asks for other scores than 1 to 10.
    """
    if path is None:
        with resources.as_file(resources.files("adaptprune.review") / "rule.json") as own:
            return load_rules(own)
    rules = {}
    for category, value in read_object(path).items():
        row = Row(f"{path}, rule {category!r}", value if isinstance(value, dict) else {})
        low, high = _scale(row)
        rules[category] = Rule(row.text("role"), row.text("prompt"), low, high)
    if not rules:
        raise AdaptPruneError(f"{str(path)!r} has no rules.")
    return rules


def _scale(row: Row) -> tuple[float, float]:
    scale = row.data.get("scale", [1, 10])
    if not isinstance(scale, list) or len(scale) != 2 or not all(_is_number(x) and x >= 0 for x in scale):
        raise AdaptPruneError(f"{row.place}: 'scale' is a pair of numbers such as [1, 10], not {scale!r}.")
    if not scale[0] < scale[1]:
        raise AdaptPruneError(f"{row.place}: 'scale' goes from the lower to the higher number, not {scale!r}.")
    return float(scale[0]), float(scale[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def parse_pair(reply: str, rule: Rule, swapped: bool) -> dict[str, Any]:
    """The two scores on the reply's first line, the reference's first whatever the judge was shown first.

    Raises
    ------
    Unparsable
        The line is not two numbers (brackets, commas and emphasis are allowed), or one is off the scale.
    """
    line = without_thoughts(reply).partition("\n")[0]
    found = _PAIR.fullmatch(line)
    if not found:
        raise Unparsable("the first line is not two scores" if line else "the reply is empty")
    scores = [float(found[1]), float(found[2])]
    if not all(rule.low <= score <= rule.high for score in scores):
        raise Unparsable(f"a score is off the scale of {rule.low:g} to {rule.high:g}")
    return {"tuple": scores[::-1] if swapped else scores}


@dataclass(frozen=True)
class Contexts:
    """What the judge is told about the images: a text per image, and whether it has boxes."""

    path: Path
    texts: Mapping[str, str]
    boxes: bool


def load_contexts(path: Path) -> Contexts:
    """Captions and boxes by image (``captions``, ``instances``), or a caption by image (``caption``)."""
    texts: dict[str, str] = {}
    kinds: dict[bool, str] = {}
    for image, row in read_by(path, "image").items():
        key = "captions" if "captions" in row.data else "caption"
        captions = row.data.get(key)
        lines = captions if isinstance(captions, list) else [captions]
        text = "\n".join(Row(row.place, {key: line}).text(key) for line in lines)
        boxes = "instances" in row.data
        if boxes:
            text += "\n\n" + "\n".join(_box(one, row) for one in _list(row, "instances"))
        texts[image] = text
        if kinds.setdefault(boxes, row.place) and len(kinds) > 1:
            raise AdaptPruneError(f"{kinds[True]} has boxes ('instances'), {kinds[False]} has none: use one kind.")
    return Contexts(path, texts, next(iter(kinds)))


def _list(row: Row, key: str) -> list[Any]:
    value = row.data[key]
    if not isinstance(value, list):
        raise AdaptPruneError(f"{row.place}: {key!r} is a list, not {value!r}.")
    return value


def _box(instance: Any, row: Row) -> str:
    inner = Row(f"{row.place}, 'instances'", instance if isinstance(instance, dict) else {})
    box = inner.data.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(x) for x in box):
        raise AdaptPruneError(f"{inner.place}: 'bbox' is four numbers, not {box!r}.")
    return f"{inner.text('category')}: {box}"


@dataclass(frozen=True)
class Comparison:
    """One question, what is known about its image, both answers, and the rule."""

    number: int
    question: Row
    category: str
    rule: Rule
    context: str | None
    reference: Row
    ours: Row

    def messages(self, system: str, swapped: bool) -> Messages:
        """The chat, in LLaVA's layout."""
        shown = [self.ours, self.reference] if swapped else [self.reference, self.ours]
        role = self.rule.role
        parts = [] if self.context is None else [f"[Context]\n{self.context}\n\n"]
        parts.append(f"[Question]\n{self.question.text('text')}\n\n")
        for place, answer in enumerate(shown, 1):
            parts.append(f"[{role} {place}]\n{answer.text('text')}\n\n[End of {role} {place}]\n\n")
        parts.append(f"[System]\n{self.rule.prompt}\n\n")
        return [{"role": "system", "content": system}, {"role": "user", "content": "".join(parts)}]

    def request(self, system: str, swapped: bool, of: int) -> Request:
        fields = {
            "id": self.number,
            "of": of,
            "answer1_id": self.reference.data.get("answer_id", self.reference.question_id),
            "answer2_id": self.ours.data.get("answer_id", self.ours.question_id),
            "category": self.category,
        }
        return Request(
            self.question.question_id,
            OURS_FIRST if swapped else REFERENCE_FIRST,
            self.messages(system, swapped),
            fields,
            partial(parse_pair, rule=self.rule, swapped=swapped),
        )


def review_pairs(
    judge: Judge,
    *,
    questions: Path,
    answers: tuple[Path, Path],
    output: Path,
    context: Path | None = None,
    rule: Path | None = None,
    system: str = SYSTEM,
    both_orders: bool = False,
    limit: int | None = None,
    progress: Progress = lambda done, total, failed: None,
) -> Outcome:
    """Review pairs of answers; call it again with the same `output` to continue, or to ask again for what failed.

    Parameters
    ----------
    judge : Judge
    questions : Path
        jsonl: question_id, text, category, and image if there is a context.
    answers : (Path, Path)
        jsonl with question_id and text: the reference's answers, and ours.
    output : Path
        jsonl of reviews; see docs/review.md.
    context : Path, optional
        jsonl by image: captions and instances, or caption.
    rule : Path, optional
        LLaVA's rule.json, or one like it.
    both_orders : bool
        Ask twice, with either answer first.
    limit : int, optional
        Only the first so many questions.
    progress : callable
        Told (done, total, failed) after every review.

    Raises
    ------
    AdaptPruneError
        A file is missing or malformed (the message names the line), `output` holds other reviews, or the judge fails
        time after time.
    """
    asked = read_by(questions)
    made = comparisons(asked, answers, context, load_rules(rule), limit)
    orders = (False, True) if both_orders else (False,)
    requests = [one.request(system, swapped, len(made)) for one in made for swapped in orders]
    return carry_out(judge, requests, output, defaults=DEFAULTS, questions=asked, progress=progress)


def comparisons(
    asked: Mapping[str, Row],
    answers: tuple[Path, Path],
    context: Path | None,
    rules: Mapping[str, Rule],
    limit: int | None,
) -> list[Comparison]:
    """Join questions, contexts, answers and rules; whatever does not fit is an error that says where."""
    names = first(asked, limit)
    reference, ours = (_answers(path, names) for path in answers)
    contexts = load_contexts(context) if context else None
    made = []
    for number, name in enumerate(names, 1):
        row = asked[name]
        row.text("text")
        category, rule = _rule(row, rules, contexts)
        told = _context(row, contexts) if contexts else None
        made.append(Comparison(number, row, category, rule, told, reference[name], ours[name]))
    return made


def _answers(path: Path, names: list[str]) -> dict[str, Row]:
    rows = read_by(path)
    missing = [name for name in names if name not in rows]
    if missing:
        raise AdaptPruneError(
            f"{path} has no answer to question {missing[0]} ({len(missing)} of {len(names)} are missing): "
            "answer all questions, or use --limit."
        )
    for name in names:
        rows[name].text("text")
    return rows


def _rule(row: Row, rules: Mapping[str, Rule], contexts: Contexts | None) -> tuple[str, Rule]:
    category = row.text("category")
    if contexts is not None and not contexts.boxes:
        category = BENCH + category
    if category in rules:
        return category, rules[category]
    if contexts is None and "default" in rules:
        return category, rules["default"]
    raise AdaptPruneError(f"{row.place}: there is no rule for category {category!r}.{did_you_mean(category, rules)}")


def _context(row: Row, contexts: Contexts) -> str:
    image = row.text("image")
    if image not in contexts.texts:
        raise AdaptPruneError(f"{row.place}: {contexts.path} has no context for image {image!r}.")
    return contexts.texts[image]
