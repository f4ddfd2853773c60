"""The readable adaptive NMS, in plain torch: what every other backend has to equal. Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptprune.errors import AdaptPruneError


def adaptive_nms(
    scores: Tensor,
    keys: Tensor,
    coords: Tensor,
    num_keep: int,
    distance_limit: float,
    distance_sigma: float,
    similarity_sigma: float,
) -> Tensor:
    """See `adaptprune.ops.adaptive_nms`; arguments are taken as checked."""
    rows = zip(scores.detach().double(), keys.detach().double(), coords.double(), strict=True)
    kept = [_one(*row, num_keep, distance_limit, distance_sigma, similarity_sigma) for row in rows]
    return torch.stack(kept).to(scores.device)


def check_norms(norm: Tensor) -> Tensor:
    """The norms, all finite; AdaptPruneError otherwise."""
    if not bool(torch.isfinite(norm).all()):
        token = int((~torch.isfinite(norm)).nonzero()[0])
        raise AdaptPruneError(
            f"the key of token {token} is not finite: the model overflowed, load it in bfloat16 or float32."
        )
    return norm


def _one(
    score: Tensor,
    key: Tensor,
    coord: Tensor,
    num_keep: int,
    distance_limit: float,
    distance_sigma: float,
    similarity_sigma: float,
) -> Tensor:
    score, norm = score.clone(), check_norms(key.norm(dim=-1))
    kept: list[int] = []
    for _ in range(num_keep):
        free = torch.ones_like(score, dtype=torch.bool)
        free[kept] = False
        best = int((free & (score == score[free].max())).nonzero()[0])  # the lowest index among equals
        kept.append(best)

        product = norm * norm[best]
        cosine = torch.where(product > 0, (key @ key[best]) / torch.where(product > 0, product, 1), 0)
        squared = (coord[:, 1:] - coord[best, 1:]).square().sum(dim=-1)
        near = torch.exp(-squared / (2 * distance_sigma**2))
        alike = torch.exp(-((1 - cosine) ** 2) / (2 * similarity_sigma**2))
        reached = (coord[:, 0] == coord[best, 0]) & (squared <= distance_limit**2)
        score = torch.where(reached, score * (1 - near * alike), score)
    return torch.tensor(sorted(kept), dtype=torch.int64)
