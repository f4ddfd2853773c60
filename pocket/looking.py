"""Where the words of a question should look: attention of three heads is taught to find the things that are meant.

Contract: at the last word of a mention, one head of each of ``COUNT_LAYERS`` spreads its attention evenly over the
things that fit, with a share on the first token of the prompt that falls as there are more of them (softmax has no sum,
only a mean; the share of that sink is what tells how many there are), and one head of ``NEXT_LAYER`` looks at the thing
next to the one that is meant. All these layers come after the one that selection rules read.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from adaptprune.tabletop.labels import PatchLabels
from pocket.mentions import NEIGHBOUR_LAYER, Mentions
from pocket.shares import MOST, shares, sum_error

COUNT_LAYERS, NEXT_LAYER = (2, 3), NEIGHBOUR_LAYER
HEAD = 0
SINK = 6.0  # things that the sink weighs as much as: a light one cannot tell many things apart, a heavy one few
NOTING = "sdpa_noting"


@dataclass
class Looks:
    """Where every mention should look: things of the kept patches (B, K) as an index, -1 for none; see `find_looks`."""

    thing: Tensor  # (B, K)
    fits: Tensor  # (M, T) of all things of the picture: whether it is meant
    next: Tensor  # (M, K) share of the thing next to the only one meant; zeros where there is none


def find_looks(mentions: Mentions, labels: list[PatchLabels], keep: np.ndarray) -> Looks:
    """Targets of the heads. A thing of which no patch is kept is not looked for."""
    share = np.stack([shares(one, kept) for one, kept in zip(labels, keep, strict=True)])
    thing = np.stack([one.thing[kept] for one, kept in zip(labels, keep, strict=True)])
    fitting = np.zeros((len(mentions.fits), MOST), dtype=bool)
    near = np.zeros((len(mentions.fits), keep.shape[1]), dtype=np.float32)
    for number, (row, fits, other) in enumerate(zip(mentions.row.tolist(), mentions.fits, mentions.near, strict=True)):
        fitting[number, [one for one in fits if one in thing[row]]] = True
        near[number] = share[row] * (thing[row] == other) if other is not None else 0
    return Looks(torch.from_numpy(thing), torch.from_numpy(fitting), torch.from_numpy(near))


def _note(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
    if hasattr(module, "noted"):
        module.noted = (query[:, HEAD], key[:, HEAD])
    return sdpa_attention_forward(module, query, key, *args, **kwargs)


AttentionInterface.register(NOTING, _note)


class Looking:
    """Notes queries and keys of the heads and compares them with the targets."""

    def __init__(self, language_model: nn.Module) -> None:
        language_model.config._attn_implementation = NOTING
        self._layers = {number: language_model.layers[number].self_attn for number in (*COUNT_LAYERS, NEXT_LAYER)}
        for layer in self._layers.values():
            layer.noted = None

    def _scores(self, number: int, mentions: Mentions, before: int, kept: int) -> Tensor:
        """Scores of the sink and of the visual tokens in a layer, (M, 1 + K)."""
        query, key = self._layers[number].noted
        asking = query[mentions.row, before + kept + mentions.place]  # (M, head_dim)
        seen = key[:, [0, *range(before, before + kept)]]
        return torch.einsum("md,mld->ml", asking, seen[mentions.row]) * self._layers[number].scaling

    def loss(self, mentions: Mentions, looks: Looks, before: int) -> tuple[Tensor, dict[str, float]]:
        """Distance from the targets in the last forward pass, ``before`` tokens ahead of the visual ones."""
        kept = looks.thing.shape[1]
        counted = [count_error(self._scores(layer, mentions, before, kept), mentions, looks) for layer in COUNT_LAYERS]
        total = torch.stack(counted).mean()
        parts = {"look": total.item()}
        known = looks.next.sum(1) > 0.5
        if known.any():
            found = self._scores(NEXT_LAYER, mentions, before, kept)[known, 1:].log_softmax(-1)
            near = (looks.next[known] * ((looks.next[known] + 1e-9).log() - found)).sum(-1).mean()
            total, parts["look next"] = total + near, near.item()
        return total, parts


def count_error(scores: Tensor, mentions: Mentions, looks: Looks) -> Tensor:
    """How far attention, given by its scores (M, 1 + K), is from 1 / SINK of the sink on every thing that is meant."""
    weights = torch.exp((scores[:, 1:] - scores[:, :1]).clamp(max=8)) * SINK
    member = F.one_hot(looks.thing + 1, MOST + 1)[:, :, 1:].float()
    return sum_error(weights, member[mentions.row], looks.fits)
