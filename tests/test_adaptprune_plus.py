"""AdaptPrune-plus: its objective, worked out anew, and how far it spreads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from adaptprune import make_pruner
from tests.oracles.cues import everything


@pytest.mark.parametrize("asked", ["both", "last", "mean"])
@pytest.mark.parametrize("sigma", [0.3, 0.05])
def test_adaptprune_plus_covers_what_is_attended_to(asked, sigma):
    """The whole objective worked out anew for every candidate of every round, with numpy."""
    for seed in range(6):
        seen = everything(4, 6, text=1 + seed % 3, seed=seed)
        rows = seen.rows.double().numpy().mean(axis=0)
        last, mean = (each / each.sum() for each in (rows[-1], rows.mean(axis=0)))
        weight = {"both": last + mean, "last": last, "mean": mean}[asked]
        keys = seen.keys.double().numpy()
        keys = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        alike = np.exp(-((1 - keys @ keys.T) ** 2) / (2 * sigma**2))
        kept: list[int] = []
        for _ in range(9):
            value = [-1.0 if i in kept else (weight * alike[:, [*kept, i]].max(axis=1)).sum() for i in range(len(seen))]
            kept.append(int(np.argmax(value)))
            pruner = make_pruner("adaptprune-plus", asked=asked, similarity_sigma=sigma)
            assert pruner.select(seen, len(kept)).tolist() == sorted(kept)


def test_adaptprune_plus_spreads_as_far_as_the_picture_does():
    """Two things: one of three equal tokens that most attention goes to, one of a single token; then, the ground."""
    seen = everything(1, 6, text=1)
    keys = torch.tensor([[1.0, 0, 0]] * 3 + [[0, 1.0, 0]] + [[0, 0, 1.0]] * 2)
    rows = torch.tensor([[[0.2, 0.3, 0.2, 0.15, 0.1, 0.05]]])
    seen = dataclasses.replace(seen, keys=keys, rows=rows, attention=rows[:, -1])
    picks = [make_pruner("adaptprune-plus").select(seen, count).tolist() for count in (1, 2, 3)]
    assert picks == [[0], [0, 3], [0, 3, 4]]
