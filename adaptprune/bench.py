"""Prefill time, pruned against unpruned, in one run on random weights: `python -m adaptprune bench`.

Only the decoder is timed (image features are made beforehand). Variants take turns within each round, so that a machine
that slows down slows all of them; medians and extremes are over the rounds.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaptprune.errors import AdaptPruneError
from adaptprune.flops import FORMULA, speedup_bound
from adaptprune.hooks import prune
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams import parts
from adaptprune.methods import make_pruner
from adaptprune.pruner import Pruner

SIDE = 24
VISUAL = SIDE * SIDE
TEXT = 92  # with 576 visual tokens: a prompt of 668, LLaVA-1.5's with a short question
IMAGE_TOKEN = 127
UNPRUNED = "unpruned"


@dataclass
class Timing:
    """One variant: milliseconds of each round, and what the report said of the last."""

    method: str
    keep_ratio: float
    prefill_ms: list[float] = field(default_factory=list)
    selection_ms: list[float] = field(default_factory=list)
    kv_bytes: int = 0

    def row(self, baseline: Timing, bound: float) -> dict[str, Any]:
        """Everything that is shown of a variant. Speed-ups are medians of the ratios within each round."""
        pairs = zip(baseline.prefill_ms, self.prefill_ms, strict=True)
        speedup = statistics.median(before / after for before, after in pairs)
        median, selection = statistics.median(self.prefill_ms), statistics.median(self.selection_ms or [0.0])
        return {
            "method": self.method,
            "keep_ratio": self.keep_ratio,
            "prefill_ms": round(median, 2),
            "prefill_ms_min": round(min(self.prefill_ms), 2),
            "prefill_ms_max": round(max(self.prefill_ms), 2),
            "speedup": round(speedup, 3),
            "bound": round(bound, 3),
            "of_bound": round(speedup / bound, 3),
            "selection_ms": round(selection, 2),
            "selection_share": round(selection / median, 4),
            "kv_bytes": self.kv_bytes,
        }


def parse_size(text: str) -> tuple[int, int]:
    """``"24x1024"`` to (layers, width)."""
    try:
        layers, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        layers = width = 0
    if layers < 3 or width < 64 or width % 64:
        raise AdaptPruneError(
            f"decoder {text!r} is not allowed: write LAYERSxWIDTH, 3 or more by a multiple of 64 (24x1024)."
        )
    return layers, width


def build(layers: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """A LLaVA with a real-sized decoder, random weights and a token tower; and inputs with its features made."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    heads = width // (128 if width >= 2048 else 64)
    tower = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=14 * SIDE,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=IMAGE_TOKEN + 1,
        hidden_size=width,
        intermediate_size=mlp_width(width),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
    )
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=IMAGE_TOKEN)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()
    ids = torch.randint(0, IMAGE_TOKEN, (1, TEXT + VISUAL))
    ids[0, 35 : 35 + VISUAL] = IMAGE_TOKEN
    pixels = torch.randn(1, 3, 14 * SIDE, 14 * SIDE).to(device, dtype)
    return model, {"input_ids": ids.to(device), **parts.handed_ahead(model, pixels)}


def mlp_width(width: int) -> int:
    """Llama's ratio of MLP to hidden width (11008 to 4096)."""
    return width * 43 // 16


@torch.inference_mode()
def compare(
    size: str,
    methods: Iterable[str],
    keep_ratios: Iterable[float],
    *,
    rounds: int = 5,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Time one decoder unpruned and under every method and ratio.

    Parameters
    ----------
    size : str
        ``"24x1024"``: layers by width.
    rounds : int
        Counted rounds, after one that is not.
    progress : callable
        Is told what is being measured.

    Returns
    -------
    list of dict
        The unpruned row first; see `Timing.row`.
    """
    layers, width = parse_size(size)
    variants = [Timing(UNPRUNED, 1.0), *(Timing(m, ratio) for ratio in keep_ratios for m in methods)]
    pruners = [None, *(make_pruner(v.method, keep_ratio=v.keep_ratio) for v in variants[1:])]
    progress(f"{size}: building {layers} layers x {width} with random weights")
    model, inputs = build(layers, width, dtype, torch.device(device))
    for turn in range(rounds + 1):
        for variant, pruner in zip(variants, pruners, strict=True):
            progress(f"{size}: round {turn} of {rounds}, {variant.method} at {variant.keep_ratio}")
            with prune(model, pruner) if pruner else nullcontext() as report:
                milliseconds, cache = _prefill(model, inputs)
            variant.kv_bytes = kv.nbytes(cache)
            if turn:
                variant.prefill_ms.append(milliseconds)
                if report is not None:
                    variant.selection_ms.append(report.selection_ms)
    bounds = [1.0, *(_bound(pruner, layers, width) for pruner in pruners if pruner)]
    return [variant.row(variants[0], bound) for variant, bound in zip(variants, bounds, strict=True)]


def _bound(pruner: Pruner, layers: int, width: int) -> float:
    counts = {} if pruner.keeps_all else pruner.counts(VISUAL, layers)
    return speedup_bound(TEXT, VISUAL, counts, layers, width, mlp_width(width))


def _prefill(model: Any, inputs: dict[str, Tensor]) -> tuple[float, Any]:
    _wait()
    start = time.perf_counter()
    cache = kv.cache_of(model(**inputs, logits_to_keep=1, use_cache=True))
    _wait()
    return 1000 * (time.perf_counter() - start), cache


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def describe(dtype: torch.dtype, device: str) -> str:
    """Where and how it was measured, and the formula of the bound."""
    name = (
        torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or platform.machine()
    )
    return (
        f"{name}, {torch.get_num_threads()} threads, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}; "
        f"prompt of {VISUAL} visual + {TEXT} text tokens, batch 1, sdpa. {FORMULA}; bound = FLOPs unpruned / pruned; "
        "times: median (min-max); speed-up: median of the ratios within each round; selection: cues and rule together."
    )
