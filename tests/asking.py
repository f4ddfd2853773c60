"""A second prompt that the same model is asked while `generate()` runs, and what it has to equal."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria

import adaptprune
from adaptprune.testing.oracle import hiding
from tests.tiny import IMAGE, RUN, batch, dropped, llava, prompt

STEPS = 4
TOLERANCE = 1e-4
RATIO = 0.25
KEPT = RUN // 4


@cache
def shared() -> Any:
    """One model for every test that leaves it as it was."""
    model = llava()
    model.generation_config.suppress_tokens = [IMAGE]  # a random model may say a placeholder
    return model


def first() -> dict[str, Tensor]:
    """What generate() is given."""
    return batch(prompt(1, 12))


def and_more() -> dict[str, Tensor]:
    """The first prompt, picture and all, and words after it."""
    words = torch.randint(2, 90, (1, 7), generator=torch.Generator().manual_seed(4))
    ids = torch.cat([first()["input_ids"], words], dim=1)
    return {**first(), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


SECONDS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "longer": lambda: batch(prompt(1, 30, 7), seed=9),
    "shorter": lambda: batch(prompt(1, 4, 7), seed=9),
    "as long": lambda: batch(prompt(1, 12, 7), seed=9),
    "other pixels": lambda: batch(prompt(1, 12), seed=9),
    "the same and more": and_more,
    "two pictures": lambda: batch(prompt(2, 10, 7), seed=9),
    "text": lambda: batch(prompt(0, 11, 7)),
    "longer text": lambda: batch(prompt(0, 70, 7)),
    "a batch": lambda: batch(prompt(1, 9, 7), prompt(2, 14, 3), seed=9),
}


class Second:
    """One sequence of its own: a prompt, then single tokens, over a kept cache or read again from the start.

    `logits` are the last ones of every reading, `gone` the dropped places where a report is given.
    """

    def __init__(self, model: Any, inputs: dict[str, Tensor], cached: bool, report: Any = None):
        self.model, self.inputs, self.start, self.cached, self.report = model, inputs, inputs, cached, report
        self.cache: Any = None
        self.tokens: list[Tensor | None] = []
        self.logits: list[Tensor] = []
        self.gone: list[list[list[int]]] = []

    def ask(self, token: Tensor | None = None) -> Tensor:
        call = self.inputs
        if token is not None:
            ids = torch.cat([call["input_ids"], token], dim=1)
            mask = torch.nn.functional.pad(call["attention_mask"], (0, 1), value=1)
            self.inputs = call = {**call, "input_ids": ids, "attention_mask": mask}
            if self.cached:
                call = {"input_ids": token, "attention_mask": mask}
        out = self.model(**call, use_cache=self.cached, past_key_values=self.cache)
        assert (out.past_key_values is not None) == self.cached
        self.cache = out.past_key_values
        self.tokens.append(token)
        self.logits.append(out.logits[:, -1])
        if self.report is not None:
            self.gone.append(dropped(self.report, self.inputs))
        return out.logits[:, -1]

    def again(self, report: Any = None, model: Any = None) -> Second:
        """The same readings, with nothing else going on."""
        other = Second(model or self.model, self.start, self.cached, report)
        for token in self.tokens:
            other.ask(token)
        return other

    def by_the_oracle(self, layer: int) -> Second:
        """The unpruned model, with what this one dropped hidden."""
        other = Second(self.model, self.start, self.cached)
        for token, gone in zip(self.tokens, self.gone, strict=True):
            with hiding(self.model, layer, self.gone[0] if self.cached else gone):
                other.ask(token)
        return other


class Asker(LogitsProcessor):
    """Asks a second prompt about every token that generate() writes; `mix` says what becomes of the scores."""

    def __init__(self, second: Second, mix: float = 0.0):
        self.second, self.mix = second, mix

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = len(self.second.inputs["input_ids"])
        token = input_ids[:1, -1:].expand(rows, 1).clone() if self.second.logits else None
        return scores - self.mix * self.second.ask(token)[:1]


class Stopping(StoppingCriteria):
    """Calls a function after every token and never stops."""

    def __init__(self, work: Callable[[], Any]):
        self.work, self.found = work, []

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: Any) -> Tensor:
        self.found.append(self.work())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def generate(model: Any, inputs: dict[str, Tensor], *processors: LogitsProcessor, steps: int = STEPS, **options: Any):
    """Sequences, and the logits of every step as the model put them out, (B, steps, V)."""
    out = model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True,
        logits_processor=LogitsProcessorList(processors), **options,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits, dim=1)


def pruning(model: Any, spec: str, **options: Any):
    return adaptprune.prune(model, spec, keep_ratio=RATIO, **options)


def layer_of(spec: str) -> int:
    return adaptprune.make_pruner(spec).layer


def said(report: Any) -> dict[str, Any]:
    """What a report says of its prompt: all but how long it took and what was read before."""
    return {key: value for key, value in report.to_dict().items() if key not in ("selection_ms", "prompts")}


def close(found: Any, expected: Any) -> None:
    """Equal within the oracle's tolerance, shapes too."""
    stack = [torch.stack(list(each)) if isinstance(each, (list, tuple)) else each for each in (found, expected)]
    torch.testing.assert_close(*stack, atol=TOLERANCE, rtol=0)


def far(found: Any, other: Any) -> bool:
    """Far enough that the comparison above says something."""
    stack = [torch.stack(list(each)) if isinstance(each, (list, tuple)) else each for each in (found, other)]
    return float((stack[0] - stack[1]).abs().max()) > 100 * TOLERANCE
