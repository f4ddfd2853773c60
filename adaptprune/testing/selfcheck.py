"""Does pruning work with the installed transformers? Every family is tried on a tiny model, against the mask oracle.

For releases that nobody tested: `adaptprune doctor` runs this. The models have random weights and are built from
configs, so that neither network nor GPU is needed; all of them together take some seconds. Nor is pytest.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from adaptprune.errors import first_line
from adaptprune.families import FAMILIES, family_of, missing, since
from adaptprune.hooks import prune, seams
from adaptprune.hooks.seams.layers import has_keys, mixes_streams
from adaptprune.testing import zoo
from adaptprune.testing.oracle import decoder_layers, hiding

#: Attention implementations that every transformers has.
ATTENTION = ("sdpa", "eager")
#: Logits that are compared: of the prompt's end, and of three words after it.
STEPS = 4
#: Images of each prompt of the batch.
IMAGES = (1, 2, 0)
KEEP_RATIO = 0.3
#: How far float32 logits (of a size of about 1) may be from the oracle's.
TOLERANCE = 1e-4

OK, FAILED, MISSING, UNCHECKED = "ok", "failed", "not there", "not checked"


class Wrong(Exception):
    """Pruning did something else than it should: the message says what was found."""


@dataclass
class Outcome:
    """What was found about one model.

    Attributes
    ----------
    name : str
        The specimen in `adaptprune.testing.zoo`, or the model type that has none.
    model_type : str
    status : {"ok", "failed", "not there", "not checked"}
        "not there": the installed transformers does not have the model. "not checked": there is no specimen of it.
    detail : str
        Why it is not there or not checked.
    errors : dict of str to str
        By attention implementation, the first line of what went wrong.
    deviation : float or None
        The largest difference of a logit from the oracle's, all implementations together.
    seconds : float
    seams : dict of str to dict
        By attention implementation: each seam, and how it is met.
    """

    name: str
    model_type: str
    status: str = OK
    detail: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    deviation: float | None = None
    seconds: float = 0.0
    seams: dict[str, dict[str, str]] = field(default_factory=dict)


def names() -> list[str]:
    """All that can be asked `check`: specimens, and the registered model types that have none."""
    covered = {zoo.model_type(name) for name in zoo.SPECIMENS}
    return [*zoo.SPECIMENS, *(name for name in FAMILIES.names() if name not in covered)]


def check(name: str) -> Outcome:
    """Try one model. Never raises: whatever goes wrong is in the outcome, for somebody to read."""
    outcome = Outcome(name, zoo.model_type(name))
    start = time.perf_counter()
    try:
        outcome.detail = missing(outcome.model_type) or ""
        if not outcome.detail:
            FAMILIES.get(outcome.model_type)
    except Exception as error:  # another package's family that cannot be imported, say
        outcome.status, outcome.errors = FAILED, {"import": said(error)}
        return outcome
    if outcome.detail:
        outcome.status = MISSING
    elif name not in zoo.SPECIMENS:
        release = since(outcome.model_type)
        outcome.status = UNCHECKED
        outcome.detail = f"tested with transformers {release} or newer" if release else "no specimen: not checked"
    else:
        for attention in ATTENTION:
            try:
                with _undisturbed():
                    _try(outcome, attention)
            except Exception as error:  # whatever it is, it is what the user has to read
                outcome.status, outcome.errors[attention] = FAILED, said(error)
        outcome.seconds = time.perf_counter() - start
    return outcome


def said(error: Exception) -> str:
    """An exception in one line: its type, unless it is our own finding, and the first line of its message."""
    return first_line(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {first_line(error)}"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Small tensors on one thread, the caller's random numbers left alone, none of transformers' advice printed."""
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    with (
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            logging.disable(disabled)


def _try(outcome: Outcome, attention: str) -> None:
    """All checks of a model with one attention implementation; raises at the first that does not hold."""
    one = zoo.SPECIMENS[outcome.name](attention)
    layer = max(2, family_of(one.model.config).smallest_layer(one.model.config))
    parts = seams.parts_of(one.model)
    outcome.seams[attention] = seams.check(parts, [parts.layers[layer - 1]])
    inputs = one.inputs(*IMAGES)
    plain = _generate(one.model, inputs)
    with _pruned(one.model, 1, layer) as everything:
        same = _generate(one.model, inputs)
    if not torch.equal(same.logits, plain.logits) or not torch.equal(same.words, plain.words):
        raise Wrong(f"keep_ratio=1 changes the answer: logits differ by {_apart(same.logits, plain.logits):.1e}")
    with _pruned(one.model, KEEP_RATIO, layer) as report:
        pruned = _generate(one.model, inputs)
    gone = _dropped(one, inputs, everything, report)
    with hiding(one.model, layer, gone, padding=inputs["attention_mask"]):
        expected = _generate(one.model, inputs)
    if _apart(expected.logits, plain.logits) <= TOLERANCE:
        raise Wrong("the mask oracle hid nothing, so that nothing can be compared with it")
    apart = _apart(pruned.logits, expected.logits)
    if math.isfinite(apart):
        outcome.deviation = max(apart, outcome.deviation or 0.0)
    if not apart <= TOLERANCE:
        steps = (_apart(pruned.logits[:, step], expected.logits[:, step]) for step in range(STEPS))
        step = next(number for number, each in enumerate(steps) if not each <= TOLERANCE)
        place = f"word {step} of the answer" if step else "the prompt"
        raise Wrong(f"logits differ from the mask oracle's by {apart:.1e} (allowed: {TOLERANCE:.0e}), first at {place}")
    if not torch.equal(pruned.words, expected.words):
        raise Wrong("the answer has other words than the mask oracle's")
    _check_cache(pruned.cache, inputs, layer, gone, report)


def _pruned(model: Any, keep_ratio: float, layer: int) -> Any:
    """`prune` by the default method; by the keys of the layer before, where that in question has none."""
    read = decoder_layers(model)[layer]
    keys = "layer" if has_keys(read) and not mixes_streams(read) else "previous"
    return prune(model, keep_ratio=keep_ratio, layer=layer, keys=keys)


@dataclass
class _Answer:
    words: Tensor  # (B, L + STEPS)
    logits: Tensor  # (B, STEPS, V)
    cache: Any


def _generate(model: Any, inputs: dict[str, Tensor]) -> _Answer:
    out = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    cache = next((value for value in out.values() if isinstance(value, Cache)), None)
    return _Answer(out.sequences, torch.stack(out.logits, dim=1), cache)


def _apart(first: Tensor, second: Tensor) -> float:
    """The largest difference; NaN if there is one."""
    return float((first - second).abs().max())


def _dropped(one: Any, inputs: dict[str, Tensor], everything: Any, report: Any) -> list[list[int]]:
    """Positions of dropped tokens by row, once they are found to be placeholders and as many as they should be."""
    gone = []
    for row, (whole, sample) in enumerate(zip(everything.samples, report.samples, strict=True)):
        visual, kept = set(whole.kept), set(sample.kept)
        places = set((inputs["input_ids"][row] == one.image_token_id).nonzero()[:, 0].tolist())
        wanted = [max(1, int(KEEP_RATIO * count)) for count, _ in whole.images]
        if len(whole.images) != IMAGES[row] or not kept <= visual <= places:
            raise Wrong(f"the report names {len(whole.images)} images in a prompt with {IMAGES[row]}, or other tokens")
        if [count for _, count in sample.images] != wanted or len(kept) != sum(wanted):
            raise Wrong(f"{len(kept)} tokens were kept in place of {sum(wanted)}")
        gone.append(sorted(visual - kept))
    return gone


def _check_cache(cache: Any, inputs: dict[str, Tensor], layer: int, gone: list[list[int]], report: Any) -> None:
    """Compare what each layer of the cache holds with the prompt, with what was dropped, and with the report."""
    if cache is None:
        raise Wrong("generate() returned no KV cache")
    total = inputs["input_ids"].shape[1]
    # padding goes with the dropped tokens: the longest of what is left is what a layer holds
    left = max(int(mask.sum()) - len(places) for mask, places in zip(inputs["attention_mask"], gone, strict=True))
    for number, each in enumerate(cache.layers):
        if not isinstance(getattr(each, "keys", None), Tensor):  # another memory, or the keys of another layer
            if report.kv_lengths[number]:
                raise Wrong(f"{report.kv_lengths[number]} keys are reported for layer {number}, which has none")
            continue
        length = total if number < layer else left
        window = getattr(each, "sliding_window", None)
        of_prompt, of_all = (n if window is None else min(n, window - 1) for n in (length, length + STEPS - 1))
        found = report.kv_lengths[number], each.keys.shape[-2], each.get_seq_length()
        if found != (of_prompt, of_all, total + STEPS - 1):
            raise Wrong(
                f"the KV cache's layer {number} holds {found[1]} keys in place of {of_all}; {found[0]} of the prompt "
                f"are reported in place of {of_prompt}, and a length of {found[2]} in place of {total + STEPS - 1}"
            )
