"""Theoretical cost of a prefill, with the formula stated wherever a number from here is shown."""

from __future__ import annotations

from collections.abc import Mapping

#: n tokens, width d, MLP width m; gated MLP, so three matrices; attention counted in full, not halved for causality.
FORMULA = "FLOPs of one layer over n tokens = 8 n d^2 + 4 n^2 d + 6 n d m"


def layer_flops(tokens: int, hidden_size: int, intermediate_size: int) -> int:
    """Floating point operations of one Llama layer (as many key/value heads as query heads) over `tokens` tokens."""
    n, d, m = tokens, hidden_size, intermediate_size
    return 8 * n * d * d + 4 * n * n * d + 6 * n * d * m


def prefill_flops(tokens: list[int], hidden_size: int, intermediate_size: int) -> int:
    """The same summed over layers; `tokens` has one entry per layer."""
    return sum(layer_flops(count, hidden_size, intermediate_size) for count in tokens)


def speedup_bound(
    text_tokens: int,
    visual_tokens: int,
    kept: Mapping[int, int],
    num_layers: int,
    hidden_size: int,
    intermediate_size: int,
) -> float:
    """How much faster the prefill can get at most if, from each decoder layer of `kept` on, so many tokens remain."""
    full = [text_tokens + visual_tokens] * num_layers
    pruned = list(full)
    for layer in sorted(kept):
        pruned[layer:] = [text_tokens + kept[layer]] * (num_layers - layer)
    sizes = hidden_size, intermediate_size
    return prefill_flops(full, *sizes) / prefill_flops(pruned, *sizes)
