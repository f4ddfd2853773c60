"""Keeps queries and keys in reach where the architecture does not normalise them.

Contract: after a step, `Rein.tighten` scales down the rows that make the queries or keys of a head, if these were
longer than a limit in the last forward pass. Muon moves every direction of a matrix by the same amount, so that scores
would grow with every step until attention sees one token only, which a norm behind the projections forgives.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pocket.precision import whole

MEASURING = "sdpa_measuring"
LIMIT = 16.0  # score of a query and a key of root mean square length that point the same way


def _note(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    if getattr(module, "lengths", None) is not None:
        with torch.no_grad():
            module.lengths = tuple(one.float().square().sum(-1).mean((0, 2)).sqrt() for one in (query, key))
    return whole(partial(_attend, module, mask, kwargs), query, key, value)


def _attend(
    module: nn.Module, mask: Tensor | None, options: dict[str, Any], query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, None]:
    """What is ahead of the text is plainly causal, and does not see the text: half of the work, or less."""
    ahead = getattr(module, "ahead", 0)
    if mask is None or not ahead:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    first = (one[:, :, :ahead] for one in (query, key, value))
    seen, _ = sdpa_attention_forward(module, *first, None, **{**options, "is_causal": True})
    read, _ = sdpa_attention_forward(module, query[:, :, ahead:], key, value, mask[:, :, ahead:], **options)
    return torch.cat([seen, read], dim=1), None


AttentionInterface.register(MEASURING, _note)


class Rein:
    """Measures the queries and keys of a language model's heads and limits them."""

    def __init__(self, language_model: nn.Module) -> None:
        language_model.config._attn_implementation = MEASURING
        self._layers = [layer.self_attn for layer in language_model.layers]
        for layer in self._layers:
            layer.lengths, layer.ahead = (), 0

    def split(self, ahead: int) -> None:
        """Say how many tokens are ahead of the text in the next forward pass."""
        for layer in self._layers:
            layer.ahead = ahead

    @torch.no_grad()
    def tighten(self) -> float:
        """Scale down what was too long; returns the length of the longest, 1 being the limit."""
        longest = 0.0
        for layer in self._layers:
            limit = math.sqrt(LIMIT / layer.scaling)
            for projection, lengths in zip((layer.q_proj, layer.k_proj), layer.lengths, strict=True):
                longest = max(longest, lengths.max().item() / limit)
                factor = (limit / lengths).clamp(max=1).repeat_interleave(layer.head_dim)
                projection.weight.mul_(factor[:, None])
                if projection.bias is not None:
                    projection.bias.mul_(factor)
        return longest
