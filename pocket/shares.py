"""Shares of things: what patches of one thing have to sum to, so that things can be counted by their patches.

Contract: the labels come from the scene alone; nothing here says where a model should look.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptprune.tabletop.labels import PatchLabels

MOST = 12  # things on a table
CUT = -2  # of a thing that is partly outside of a crop: its patches sum to something unknown


def shares(labels: PatchLabels, keep: np.ndarray) -> np.ndarray:
    """Share of its thing that each kept patch stands for, (K,), summing to 1 over every thing; 0 where there is none.

    A tent over the patches around the thing's centre, wherever it lies between them: errors of the centre move weight
    from one patch to the next and hardly change the sum, unlike those of a centre that is in one patch or the other.
    """
    things = labels.thing[keep]
    tent = np.clip(1 - np.abs(labels.offset[keep]), 0, None).prod(axis=1) * (things >= 0)
    for thing in set(things[things >= 0].tolist()):
        own = things == thing
        total = tent[own].sum()
        # the centre may be hidden or dropped, and then all patches of the thing stand for it
        tent[own] = tent[own] / total if total > 0.05 else 1 / own.sum()
    return tent.astype(np.float32)


def sum_error(weights: Tensor, member: Tensor, fits: Tensor) -> Tensor:
    """How far weights of patches (R, K) are from a sum of 1 over every thing that fits and of 0 over the rest.

    ``member`` (R, K, T) says which patch is on which thing and ``fits`` (R, T) which things are meant. Of these the
    error of the logarithm is taken, of the rest ``log(1 + sum)``. A divergence between distributions would hardly mind
    a thing that weighs half as much as another one, and then sums of things are wrong.
    """
    sums = torch.einsum("rk,rkt->rt", weights, member)
    log = (sums[fits] + 1e-4).log()
    wrong = F.smooth_l1_loss(log, torch.zeros_like(log), beta=0.1)
    rest = (weights.sum(1) - (sums * fits).sum(1)).clamp(min=0)
    return (wrong if len(log) else 0) + torch.log1p(rest).mean()


def share_error(log_share: Tensor, thing: Tensor) -> Tensor:
    """Error of the shares that patches say they have of their things, from their logarithms (B, K).

    ``thing`` (B, K) is an index, -1 for none, CUT for one that is not counted.
    """
    member = F.one_hot(thing.clamp(min=-1) + 1, MOST + 1)[:, :, 1:].float()
    return sum_error(log_share.clamp(max=4).exp() * (thing != CUT), member, member.any(1))
