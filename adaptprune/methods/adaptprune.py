"""AdaptPrune: attention, spatial distance and token similarity joined in an adaptive NMS (arXiv 2503.08019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from adaptprune.checks import not_negative, one_of, positive
from adaptprune.cues import VisualTokens
from adaptprune.ops import BACKENDS, adaptive_nms
from adaptprune.pruner import Pruner

KEY_SOURCES = {"layer": "keys", "reference": "raw_keys", "previous": "previous_keys"}


@dataclass(frozen=True)
class AdaptPrune(Pruner):
    """Keep the tokens that a greedy soft-NMS over debiased attention picks (https://arxiv.org/abs/2503.08019).

    1. a = mean over heads of the last prompt token's attention at layer K-1.
    2. Positional bias: a is multiplied by a centred Gaussian whose sigma is half the grid's side (see `centre_weight`).
    3. M rounds: keep the highest; lower every token of the same grid within `distance_limit` of it by
       ``1 - exp(-d^2 / 2 distance_sigma^2) * exp(-(1 - cos)^2 / 2 similarity_sigma^2)``, so that only a token that is
       both near and nearly identical to a kept one is suppressed.

    Parameters
    ----------
    distance_limit, distance_sigma : float
        Grid cells.
    similarity_sigma : float
        In units of cosine similarity between keys.
    centre_sigma : float
        Sigma of the positional correction as a multiple of half the grid's side; the paper has 1.
    keys : {"layer", "reference", "previous"}
        Which keys are compared. "layer": layer K's true keys (after its input layer norm). "reference": bit for bit
        what the released code ranks by, the projection of the hidden state before the norm. "previous": layer K-1's
        keys, which exist already, so that selection needs no projection of its own.
    backend : str
        See `adaptprune.ops.adaptive_nms`.
    """

    distance_limit: float = 5.0
    distance_sigma: float = 1.5
    similarity_sigma: float = 0.05
    centre_sigma: float = 1.0
    keys: str = "layer"
    backend: str = "auto"

    name: ClassVar[str] = "adaptprune"
    summary: ClassVar[str] = "greedy soft-NMS over debiased attention: near and alike tokens suppress each other"
    paper: ClassVar[str] = "arXiv 2503.08019"
    cost: ClassVar[str] = "O(HN + MD)"

    def __post_init__(self) -> None:
        one_of("keys", self.keys, KEY_SOURCES)
        check_nms(self)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"attention", KEY_SOURCES[self.keys]})

    def score(self, tokens: VisualTokens) -> Tensor:
        assert tokens.attention is not None
        attention = tokens.attention.float().mean(dim=0)  # (N,)
        return attention * centre_weight(tokens.coords, self.centre_sigma)

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.keys is not None
        return suppressed(self, self.score(tokens), tokens.keys, tokens.coords, num_keep)

    def warm_up(self) -> None:
        warm_up_nms(self.backend)


def check_nms(rule: Any) -> None:
    """Raise AdaptPruneError for options of the adaptive NMS that are not allowed."""
    one_of("backend", rule.backend, ("auto", *BACKENDS))
    not_negative("distance_limit", rule.distance_limit)
    for option in ("distance_sigma", "similarity_sigma", "centre_sigma"):
        positive(option, getattr(rule, option))


def suppressed(rule: Any, scores: Tensor, keys: Tensor, coords: Tensor, num_keep: int) -> Tensor:
    """What the adaptive NMS keeps of (N,) scores with a rule's options, (num_keep,)."""
    return adaptive_nms(
        scores[None],
        keys[None],
        coords[None],
        num_keep,
        distance_limit=rule.distance_limit,
        distance_sigma=rule.distance_sigma,
        similarity_sigma=rule.similarity_sigma,
        backend=rule.backend,
    )[0]


def warm_up_nms(backend: str) -> None:
    """Have the kernel ready."""
    one = torch.ones(1, 1)
    adaptive_nms(one, one[..., None], torch.zeros(1, 1, 3, dtype=torch.int64), 1, backend=backend)


def centre_weight(coords: Tensor, sigma: float = 1.0) -> Tensor:
    """The correction of the positional bias: a Gaussian centred on each grid, rescaled so that its maximum is 1.

    The released code has ``exp(-(x^2 + y^2) / (2 * 12^2))`` with x, y on ``linspace(-12, 12, 24)``; here each axis of
    each grid has its own side, and `sigma` multiplies half of it.

    Parameters
    ----------
    coords : Tensor, (N, 3), int64
        Grid, row, column.
    sigma : float
        In halves of the grid's side.

    Returns
    -------
    Tensor, (N,), float32
    """
    weight = torch.ones(coords.shape[0], device=coords.device)
    for grid in torch.unique(coords[:, 0]):
        member = coords[:, 0] == grid
        exponent = torch.zeros(int(member.sum()), device=coords.device)
        for axis in (1, 2):
            place = coords[member, axis]
            side = int(place.max()) + 1
            ruler = torch.linspace(-side / 2, side / 2, side, device=coords.device)
            exponent = exponent + ruler[place] ** 2 / (2 * (sigma * side / 2) ** 2)
        weight[member] = torch.exp(exponent.min() - exponent)
    return weight
