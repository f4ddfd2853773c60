"""MM-Vet: the judge compares an answer with the ground truth and gives 0.0 to 1.0; scores are read per capability.

The questions are the published ``mm-vet.json``, the answers a ``{"v1_0": "answer", …}``. The message is the prompt, a
line end, and the open row ``question | ground truth | prediction |``, as the official evaluator lays it out. The prompt
that comes with the package was written for it and is *not* the official text; give that as a file to compare with
published scores.

Unlike there, a reply without a score stays without one: it is not asked again warmer and warmer, and never becomes 0.

Source: https://arxiv.org/abs/2308.02490, https://github.com/yuweihao/MM-Vet
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from adaptprune.checks import whole
from adaptprune.errors import AdaptPruneError
from adaptprune.review.files import Row, read_object, read_text
from adaptprune.review.judge import Judge
from adaptprune.review.request import Request, Unparsable, without_thoughts
from adaptprune.review.run import Outcome, Progress, carry_out, first

#: The official evaluator stops at 3 tokens, which is "0.5" in its judge's tokenizer but not in every other's.
DEFAULTS = {"temperature": 0.0, "max_tokens": 16}
_SCORE = re.compile(r"[\s|*`]*([0-9]+(?:\.[0-9]+)?)[\s|*`]*")


def load_prompt(path: Path | None = None) -> str:
    """The few-shot prompt; default: the package's own."""
    if path is None:
        return (resources.files("adaptprune.review") / "mm_vet_prompt.txt").read_text(encoding="utf-8")
    prompt = read_text(path)
    if not prompt.strip():
        raise AdaptPruneError(f"{str(path)!r} is empty: it holds the prompt.")
    return prompt


def load_questions(path: Path) -> dict[str, Row]:
    """``mm-vet.json``: question, answer and capabilities by id."""
    rows = {}
    for name, value in read_object(path).items():
        row = Row(f"{path}, question {name!r}", value if isinstance(value, dict) else {})
        row.text("question")
        row.text("answer")
        abilities = row.data.get("capability")
        if not isinstance(abilities, list) or not abilities or not all(isinstance(a, str) and a for a in abilities):
            raise AdaptPruneError(f"{row.place}: 'capability' is a list of names, not {abilities!r}.")
        rows[name] = row
    if not rows:
        raise AdaptPruneError(f"{str(path)!r} has no questions.")
    return rows


def load_results(path: Path, questions: dict[str, Row], names: list[str]) -> dict[str, str]:
    """The answers to `names`; one that is missing, or to a question that is not there, is an error."""
    data = read_object(path)
    strange = [name for name in data if name not in questions]
    if strange:
        raise AdaptPruneError(f"{path} answers {strange[0]!r}, which is no question: are these results of another set?")
    missing = [name for name in names if name not in data]
    if missing:
        raise AdaptPruneError(
            f"{path} has no answer to {missing[0]} ({len(missing)} of {len(names)} are missing): "
            "answer all questions, or use --limit."
        )
    row = Row(str(path), data)
    return {name: row.text(name) for name in names}


def parse_score(reply: str) -> dict[str, Any]:
    """The number on the reply's first line.

    Raises
    ------
    Unparsable
        The line is not one number (bars and emphasis are allowed), or the number is not within 0 and 1.
    """
    line = without_thoughts(reply).partition("\n")[0]
    found = _SCORE.fullmatch(line)
    if not found:
        raise Unparsable("the first line is not a score" if line else "the reply is empty")
    if not 0 <= float(found[1]) <= 1:
        raise Unparsable("the score is not within 0 and 1")
    return {"score": float(found[1])}


def review_mm_vet(
    judge: Judge,
    *,
    questions: Path,
    results: Path,
    output: Path,
    prompt: Path | None = None,
    runs: int = 1,
    limit: int | None = None,
    progress: Progress = lambda done, total, failed: None,
) -> Outcome:
    """Grade MM-Vet answers; call it again with the same `output` to continue, or to ask again for what failed.

    Parameters
    ----------
    judge : Judge
    questions : Path
        ``mm-vet.json`` as published.
    results : Path
        Answers by question id, in JSON.
    output : Path
        jsonl of reviews; see docs/review.md.
    prompt : Path, optional
        Few-shot prompt in place of the package's own.
    runs : int
        How often every answer is graded (the paper: 5).
    limit : int, optional
        Only the first so many questions.
    progress : callable
        Told (done, total, failed) after every review.

    Raises
    ------
    AdaptPruneError
        A file is missing or malformed, `output` holds other reviews, or the judge fails time after time.
    """
    whole("runs", runs, 1, 100)
    asked = load_questions(questions)
    names = first(asked, limit)
    answers = load_results(results, asked, names)
    text = load_prompt(prompt)
    requests = [
        _request(number, name, asked[name], answers[name], text, run, len(names))
        for run in range(1, runs + 1)
        for number, name in enumerate(names, 1)
    ]
    return carry_out(judge, requests, output, defaults=DEFAULTS, questions=asked, progress=progress)


def _request(number: int, name: str, row: Row, answer: str, prompt: str, run: int, of: int) -> Request:
    truth = row.text("answer").replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    content = prompt + "\n" + " | ".join([row.text("question"), truth, answer, ""])
    fields = {"id": number, "of": of, "capability": row.data["capability"]}
    return Request(name, f"run {run}", [{"role": "user", "content": content}], fields, parse_score)
