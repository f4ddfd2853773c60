"""What rules of projected features share."""

from __future__ import annotations

from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.ops.vectors import directions

SIGNS = {
    "negative": "tokens unlike the instruction count as relevant, as LLaVA's published code has it",
    "positive": "tokens like the instruction do",
}


def likeness_to_text(tokens: VisualTokens, sign: str) -> Tensor:
    """The mean cosine of each token to the instruction's embeddings, (N,) float64, with a sign."""
    assert tokens.features is not None
    assert tokens.text is not None
    # the mean of cosines is the product with the directions' mean
    mean = directions(tokens.features) @ directions(tokens.text).mean(dim=0)
    return -mean if sign == "negative" else mean


def tower_attention(tokens: VisualTokens) -> Tensor:
    """The mean over heads of the attention of the tower's last layer but one, (N,) float64."""
    return tokens.tower[-2].attention.detach().double().mean(dim=0)
