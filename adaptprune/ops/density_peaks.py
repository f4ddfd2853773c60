"""Density peaks clustering with nearest neighbours (DPC-kNN), which rules that merge tokens share."""

from __future__ import annotations

import torch
from torch import Tensor


def density_peaks(points: Tensor, count: int, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """Clusters around the points that are dense, and far from all that are denser.

    - density: ``rho_i = exp(-m_i)``, m_i the mean squared Euclidean distance to the `neighbours` nearest other points
      (to all others, where there are fewer);
    - separation: delta_i is the distance to the nearest point of higher density (of equals, the lower index counts as
      the denser); of the densest of all, its largest distance to any;
    - centres: the `count` points of highest ``rho * delta``, compared as logarithms, for rho of wide vectors is too
      small for a float;
    - every other point joins its nearest centre, a centre itself. Ties go to the lower index.

    Parameters
    ----------
    points : Tensor, (R, D), floating
        R is 1 or more.
    count : int
        1 to R.
    neighbours : int

    Returns
    -------
    centres : Tensor, (count,), int64
        Indices of points, ascending.
    member : Tensor, (R,), int64
        Which of `centres` each point belongs to.
    """
    size = points.shape[0]
    apart = _distances(points)
    others = apart.square().fill_diagonal_(torch.inf)
    nearest = others.topk(min(neighbours, size - 1), largest=False).values
    density = -nearest.mean(dim=1) if size > 1 else torch.zeros_like(apart[0])  # its logarithm

    order = torch.sort(density, descending=True, stable=True).indices
    rank = torch.empty_like(order)
    rank[order] = torch.arange(size, device=order.device)
    denser = rank[None, :] < rank[:, None]
    separation = apart.masked_fill(~denser, torch.inf).amin(dim=1)
    separation[order[0]] = apart[order[0]].max()

    peaks = torch.sort(density + separation.log(), descending=True, stable=True).indices
    centres = peaks[:count].sort().values
    member = apart[:, centres].argmin(dim=1)
    member[centres] = torch.arange(count, device=member.device)
    return centres, member


def _distances(points: Tensor) -> Tensor:
    """Euclidean distances between all points, (R, R) in float64."""
    wide = points.double()
    product = wide @ wide.T
    squared = product.diagonal()
    return (squared[:, None] + squared[None, :] - 2 * product).clamp_min(0).fill_diagonal_(0).sqrt()
