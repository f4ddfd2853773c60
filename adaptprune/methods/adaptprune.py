"""AdaptPrune: attention, spatial distance and token similarity joined in an adaptive NMS (arXiv 2503.08019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import not_negative, positive
from adaptprune.cues import VisualTokens
from adaptprune.errors import AdaptPruneError
from adaptprune.ops import BACKENDS, adaptive_nms
from adaptprune.pruner import Pruner
from adaptprune.registry import did_you_mean

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
        for option, allowed in (("keys", [*KEY_SOURCES]), ("backend", ["auto", *BACKENDS])):
            if getattr(self, option) not in allowed:
                value = getattr(self, option)
                raise AdaptPruneError(f"unknown {option}={value!r}.{did_you_mean(str(value), allowed)}")
        not_negative("distance_limit", self.distance_limit)
        for option in ("distance_sigma", "similarity_sigma", "centre_sigma"):
            positive(option, getattr(self, option))
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
        return adaptive_nms(
            self.score(tokens)[None],
            tokens.keys[None],
            tokens.coords[None],
            num_keep,
            distance_limit=self.distance_limit,
            distance_sigma=self.distance_sigma,
            similarity_sigma=self.similarity_sigma,
            backend=self.backend,
        )[0]

    def warm_up(self) -> None:
        one = torch.ones(1, 1)
        adaptive_nms(one, one[..., None], torch.zeros(1, 1, 3, dtype=torch.int64), 1, backend=self.backend)


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
