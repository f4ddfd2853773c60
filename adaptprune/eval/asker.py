"""A batch of questions to answers under one column, by the batch engine, with its times. Knows nothing of files."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from PIL import Image

from adaptprune.engines.batch.ask import Question, ask_all
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.jobs import Usage
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.engines.errors import EngineError
from adaptprune.engines.protocol import Answer
from adaptprune.engines.sampling import Sampling
from adaptprune.eval import speed
from adaptprune.eval.columns import DOWNSAMPLE, Column
from adaptprune.eval.task import Item
from adaptprune.prompts import Turn, question
from adaptprune.prompts.smaller import smaller
from adaptprune.pruner import Pruner

MOST = 2**31


class Asker:
    """Puts questions to a loaded model; a context, in which its engine runs.

    Parameters
    ----------
    model, processor
        As `adaptprune.load` gives them.
    protocol : str
        How prompts are written, see `adaptprune.prompts.formats`.
    batch_size : int
        Questions that are answered at the same time.
    """

    def __init__(self, model: Any, processor: Any, protocol: str, batch_size: int) -> None:
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self._protocol = protocol
        self._encode_ms: dict[tuple[str, str], float] = {}
        self._made: dict[Hashable, tuple[Sequence[Turn], Callable[[], Any]]] = {}

    def __enter__(self) -> Asker:
        limits = EngineLimits(self.batch_size, MOST, MOST, timeout=math.inf, prompts_per_step=self.batch_size)
        # pictures of a batch, and as many again for a column that makes them smaller
        self.engine = Engine(
            "evaluation", self.model, self.processor, limits, protocol=self._protocol, remember=2 * self.batch_size
        )
        self.engine.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.engine.stop()
        self.forget()  # what an error left behind belongs to other questions

    def forget(self) -> None:
        """Drop what was made of the questions and pictures so far; before others are asked."""
        self.engine.forget()
        self._encode_ms.clear()
        self._made.clear()

    def ask(
        self,
        items: Sequence[Item],
        pictures: Mapping[str, Sequence[Image.Image]],
        column: Column,
        max_new_tokens: int,
        start: int = 0,
    ) -> tuple[list[Answer | EngineError], speed.Batch | None]:
        """Greedy answers, or why there is none, in the items' order; and how long they took, if there is any.

        Parameters
        ----------
        pictures : mapping of str to sequence of PIL images
            By `Item.picture`. Those of one item are encoded once for all that share them, and for all columns.
        start : int
            The first item's place among all.
        """
        conversations = [question(item.prompt, pictures[item.picture]) for item in items]
        names = [item.picture for item in items]
        return self.converse(conversations, names, column, max_new_tokens, start)

    def converse(
        self,
        conversations: Sequence[Sequence[Turn]],
        names: Sequence[str],
        column: Column,
        max_new_tokens: int,
        start: int = 0,
    ) -> tuple[list[Answer | EngineError], speed.Batch | None]:
        """As `ask`; `names` are those of the conversations' pictures."""
        sampling = Sampling(max_new_tokens, temperature=0.0)
        asked = [self._question((start, place), turns, column, sampling) for place, turns in enumerate(conversations)]
        found, milliseconds = ask_all(self.engine, asked)
        done = [(name, one[1]) for name, one in zip(names, found, strict=True) if not isinstance(one, EngineError)]
        answers = [one if isinstance(one, EngineError) else one[0] for one in found]
        return answers, self._times(done, milliseconds, column, start) if done else None

    def _question(self, place: tuple[int, int], turns: Sequence[Turn], column: Column, sampling: Sampling) -> Question:
        if column.method != DOWNSAMPLE:
            return self._prepared((place, ""), turns, sampling, column.pruner())
        less = smaller(turns, column.keep_ratio, self.processor, self.model.config)
        made = self._prepared((place, column.name), less.turns, sampling, None, **less.processing)
        return replace(made, encoding=less.encoding)

    def _prepared(
        self, key: Hashable, turns: Sequence[Turn], sampling: Sampling, pruner: Pruner | None, **processing: Any
    ) -> Question:
        """A question whose inputs are made once for all columns that show the pictures so."""
        if key not in self._made:
            self._made[key] = turns, cache(partial(self.engine.prompter.inputs, turns, **processing))
        turns, make = self._made[key]
        return Question(turns, sampling, pruner, make)

    def _times(
        self, asked: Sequence[tuple[str, Usage]], milliseconds: float, column: Column, start: int
    ) -> speed.Batch:
        """Of a batch, by its pictures; what the tower took is told for every column, whichever it ran for."""
        size = column.name if column.method == DOWNSAMPLE else ""
        for name, usage in asked:
            self._encode_ms[name, size] = max(self._encode_ms.get((name, size), 0.0), usage.encode_ms)
        done = [usage for _, usage in asked]
        encoding = sum(usage.encode_ms for usage in done)
        return speed.Batch(
            start,
            len(done),
            sum(self._encode_ms[name, size] for name in {name for name, _ in asked}),
            sum(usage.prefill_ms for usage in done) - encoding,
            milliseconds - encoding,
            sum(usage.completion_tokens for usage in done),
            sum(usage.kv_bytes for usage in done),
        )
