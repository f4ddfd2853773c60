"""Rules side by side on one question: what each answers, keeps and costs. Talks to an engine, and knows no models.

Contract: every rule is asked the same conversation anew, in turns, so that a busy machine slows all of them alike;
times are medians over the rounds, after one round that is not counted. A rule that does not suit the model has its
reason in its row, and the others go on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from adaptprune.engines.local import LocalEngine
from adaptprune.engines.protocol import NONE, Answer, Pruning
from adaptprune.engines.sampling import Sampling
from adaptprune.errors import AdaptPruneError
from adaptprune.methods import make_pruner
from adaptprune.prompts import question
from adaptprune.registry import between_commas


@dataclass
class Compared:
    """One rule's row.

    Attributes
    ----------
    method : str
        As it was asked for; "none" is the unpruned model.
    answer : Answer or None
        Of the last round.
    first_token_ms, total_ms : list of float
        One per counted round.
    error : str or None
        Why there is no answer.
    """

    method: str
    pruning: Pruning
    answer: Answer | None = None
    first_token_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def title(self) -> str:
        """What it is called, for people."""
        return "unpruned" if self.method == NONE else self.method

    @property
    def medians(self) -> tuple[float, float] | None:
        """Milliseconds to the first token and to the end of the answer; None if no round counted."""
        if not self.first_token_ms:
            return None
        return statistics.median(self.first_token_ms), statistics.median(self.total_ms)

    @property
    def kept(self) -> tuple[int, int] | None:
        """Visual tokens that were kept, and all of them; None if none was up for choice."""
        if self.answer is None or self.answer.visual_tokens is None or self.answer.visual_tokens_kept is None:
            return None
        return self.answer.visual_tokens_kept, self.answer.visual_tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON. Times in milliseconds: the median, the lowest and the highest."""
        report = self.answer.report if self.answer is not None else None
        return {
            "method": self.method,
            "spec": report.method if report is not None else None,
            "answer": self.answer.text if self.answer is not None else None,
            "kept": self.kept[0] if self.kept else None,
            "visual_tokens": self.kept[1] if self.kept else None,
            "mean_kept": report.samples[0].mean_kept if report is not None and report.samples else None,
            "selection_ms": report.selection_ms if report is not None else None,
            "first_token_ms": _spread(self.first_token_ms),
            "total_ms": _spread(self.total_ms),
            "error": self.error,
        }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else None


def plan(methods: Sequence[str], keep_ratio: float | None, num_keep: int | None, layer: int | None) -> list[Compared]:
    """A row for every rule, the unpruned model first; a mistake in one is found before anything runs."""
    rows = [Compared(NONE, Pruning(NONE))]
    for method in methods:
        if method == NONE:
            continue
        pruning = Pruning(method, keep_ratio, num_keep, layer, reselect=False)
        made = pruning.pruner()
        if layer is not None and made is not None and made.layer != layer:
            raise AdaptPruneError(f"{method!r} takes no layer={layer}: leave it out.")
        rows.append(Compared(method, pruning))
    names = [row.method for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise AdaptPruneError(f"method {twice!r} is given twice: leave one out.")
    return rows


def compare(
    engine: LocalEngine,
    prompt: str,
    images: Sequence[Image.Image],
    rows: Sequence[Compared],
    sampling: Sampling,
    rounds: int = 3,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Fill `rows`.

    Parameters
    ----------
    engine : LocalEngine
        Made with ``explain=True`` if maps of scores are wanted.
    rounds : int
        Counted ones, 1 or more.
    on_step : callable
        Is called after every answer: ``len(rows) * (rounds + 1)`` times.
    """
    turns = question(prompt, list(images))
    for number in range(rounds + 1):
        for row in rows:
            if row.error is None:
                _ask(engine, turns, row, sampling, counted=number > 0)
            on_step()


def _ask(engine: LocalEngine, turns: Any, row: Compared, sampling: Sampling, counted: bool) -> None:
    engine.reset()
    try:
        row.answer = engine.ask(turns, sampling, row.pruning)
    except AdaptPruneError as error:
        row.error, row.answer = str(error), None
        return
    if counted and row.answer.first_token_ms is not None and row.answer.total_ms is not None:
        row.first_token_ms.append(row.answer.first_token_ms)
        row.total_ms.append(row.answer.total_ms)


def names_of(methods: Sequence[str]) -> list[str]:
    """Names or specs out of ``a,b,c``: a comma that stands inside a spec's options belongs to it."""
    found: list[str] = []
    for text in methods:
        for part in filter(None, (each.strip() for each in between_commas(text))):
            options = found and ":" in found[-1] and "=" in part and ":" not in part
            if options:
                found[-1] += f",{part}"
            else:
                found.append(part)
    for name in found:
        if name != NONE:
            make_pruner(name)
    return found
