"""The readable greedy selections, in plain torch and float64: what every other backend has to equal. Slow on purpose.

Each returns its picks, (B, num_keep), in the order in which they were made. Arguments are taken as checked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaptprune.ops.greedy import SPANNED, TIE
from adaptprune.ops.inputs import finite
from adaptprune.ops.vectors import directions

LOWEST = -torch.inf


def first_of_the_highest(values: Tensor, scale: Tensor) -> int:
    """The lowest index whose value is the highest, to within `TIE` of what both could have been."""
    best = int(values.argmax())
    return int((values >= values[best] - TIE * (scale + scale[best])).nonzero()[0])


def dpp(rows: Tensor, quality: Tensor, num_keep: int, dense: bool, unit: bool, ridge: float) -> Tensor:
    """See `adaptprune.ops.dpp`."""
    kept = []
    for each, q in zip(rows.to("cpu", torch.float64), quality, strict=True):
        finite("kernel" if dense else "factors", each.square().sum(dim=1))
        factors = _unit("factors", each) if unit else each
        kernel = (each if dense else factors @ factors.T) * q[:, None] * q[None]
        kept.append(_dpp(kernel + ridge * torch.eye(len(q), dtype=torch.float64), num_keep))
    return torch.tensor(kept)


def _dpp(kernel: Tensor, num_keep: int) -> list[int]:
    whole = finite("diagonal entries", kernel.diagonal().clone())
    left = whole.clone()
    columns: list[Tensor] = []
    kept: list[int] = []
    while len(kept) < num_keep:
        left[left <= SPANNED * whole] = LOWEST
        if left.max() == LOWEST:  # the rank is exhausted
            rest = [i for i in range(len(whole)) if i not in kept]
            return kept + rest[: num_keep - len(kept)]
        j = first_of_the_highest(left, whole)
        column = (kernel[j] - sum((c[j] * c for c in columns), torch.zeros_like(whole))) / left[j].sqrt()
        left = left - column.square()
        left[j] = LOWEST
        columns.append(column)
        kept.append(j)
    return kept


def max_min(features: Tensor, quality: Tensor, num_keep: int, seed: str) -> Tensor:
    """See `adaptprune.ops.max_min`."""
    kept = []
    for each, q in zip(features.to("cpu", torch.float64), quality, strict=True):
        unit = _unit("features", each)
        kept.append(_max_min(unit @ unit.T, q, num_keep, seed))
    return torch.tensor(kept)


def _max_min(cosine: Tensor, quality: Tensor, num_keep: int, seed: str) -> list[int]:
    others = cosine.clone().fill_diagonal_(LOWEST)
    first = 1 - others.max(dim=1).values if seed == "farthest" else quality
    kept = [first_of_the_highest(first, torch.ones_like(quality) if seed == "farthest" else quality)]
    while len(kept) < num_keep:
        value = quality * (1 - cosine[:, kept].max(dim=1).values)
        value[kept] = LOWEST
        kept.append(first_of_the_highest(value, quality))
    return kept


def facility_location(
    features: Tensor, weights: Tensor, scale: Tensor, num_keep: int, shifted: bool, width: float
) -> Tensor:
    """See `adaptprune.ops.facility_location`."""
    kept = []
    for each, weight, r in zip(features.to("cpu", torch.float64), weights, scale, strict=True):
        unit = _unit("features", each)
        alike = unit @ unit.T
        if width:
            alike = torch.exp(-((1 - alike) ** 2) / (2 * width**2))
        elif shifted:
            alike = (1 + alike) / 2
        kept.append(_facility_location(alike, weight, r, num_keep))
    return torch.tensor(kept)


def _facility_location(alike: Tensor, weight: Tensor, scale: Tensor, num_keep: int) -> list[int]:
    kept: list[int] = []
    best = torch.zeros_like(weight)
    open_ = torch.ones_like(weight)
    while len(kept) < num_keep:
        gain = scale * (weight * open_ * (alike - best).clamp(min=0)).sum(dim=1)
        gain[kept] = LOWEST
        j = first_of_the_highest(gain, scale * weight.sum())
        best = torch.maximum(best, alike[j])
        open_[j] = 0
        kept.append(j)
    return kept


def balanced(features: Tensor, relevance: Tensor, num_keep: int, diversity: float, coverage: float) -> Tensor:
    """See `adaptprune.ops.balanced`."""
    kept = []
    for each, r in zip(features.to("cpu", torch.float64), relevance, strict=True):
        unit = _unit("features", each)
        kept.append(_balanced(unit @ unit.T, over(r, r.mean()), num_keep, diversity, coverage))
    return torch.tensor(kept)


def _balanced(cosine: Tensor, relevance: Tensor, num_keep: int, diversity: float, coverage: float) -> list[int]:
    kept = [first_of_the_highest(relevance, relevance)]
    while len(kept) < num_keep:
        nearest = cosine[:, kept].max(dim=1).values
        open_ = torch.ones_like(relevance, dtype=torch.bool)
        open_[kept] = False
        apart, cover = 1 - nearest, ((cosine - nearest).clamp(min=0) * open_).sum(dim=1)
        value = relevance + sum(
            share * over(part, part[open_].mean(), floor)
            for share, part, floor in ((diversity, apart, TIE), (coverage, cover, TIE * len(cover)))
        )
        value[kept] = LOWEST
        kept.append(first_of_the_highest(value, relevance + diversity + coverage))
    return kept


def over(values: Tensor, mean: Tensor, floor: float = 0.0) -> Tensor:
    """Values over their mean; zeros where the mean is one, but for rounding."""
    return values / mean if mean > floor else torch.zeros_like(values)


def _unit(name: str, rows: Tensor) -> Tensor:
    """Rows of length 1, in float64; zeros stay zeros."""
    finite(name, rows.norm(dim=1))
    return directions(rows)
