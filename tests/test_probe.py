"""What the attention cue sees of masks that are not spelt out (flash attention), and where a window ends."""

import math

import pytest
import torch

from adaptprune.hooks import narrow, state
from adaptprune.hooks.probe import attention_rows
from adaptprune.hooks.seams.attention import Watched
from adaptprune.hooks.state import Call, PruneState, View

BATCH, HEADS, SHARED, PAST, LENGTH, WIDTH = 2, 4, 2, 3, 7, 8
TOTAL = PAST + LENGTH
PADDINGS = {"none": None, "left": [[0] * 2 + [1] * 8, [1] * 10], "right": [[1] * 8 + [0] * 2, [1] * 10]}


def by_hand(query, key, padding, window, softcap):
    """Attention of each sample's last real token, key by key in plain floats, and the token it is."""
    found = torch.zeros(BATCH, HEADS, TOTAL, dtype=torch.float64)
    for row in range(BATCH):
        real = range(TOTAL) if padding is None else [i for i, one in enumerate(padding[row]) if one]
        last = max(real)
        for head in range(HEADS):
            scores = {}
            for place in real:
                if place > last or (window is not None and last - place >= window):
                    continue
                pairs = zip(query[row, head, last - PAST].tolist(), key[row, head // 2, place].tolist(), strict=True)
                score = sum(a * b for a, b in pairs) / math.sqrt(WIDTH)
                scores[place] = score if softcap is None else softcap * math.tanh(score / softcap)
            total = sum(math.exp(score) for score in scores.values())
            for place, score in scores.items():
                found[row, head, place] = math.exp(score) / total
    return found


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 4, 9, 10])
@pytest.mark.parametrize("side", list(PADDINGS))
def test_attention_without_a_spelt_out_mask(side, window, softcap):
    torch.manual_seed(0)
    query, key = torch.randn(BATCH, HEADS, LENGTH, WIDTH), torch.randn(BATCH, SHARED, TOTAL, WIDTH)
    padding = PADDINGS[side]
    given = None if padding is None else torch.tensor(padding)
    call = Call(PruneState((2,)), PAST, LENGTH, BATCH, torch.device("cpu"), token_mask=given)
    seen = Watched(query, key, given, None, softcap, window)
    found = attention_rows(call, 1, seen, call.last_row()[:, None])[:, :, 0]
    assert torch.allclose(found.double(), by_hand(query, key, padding, window, softcap), atol=1e-6)


@pytest.mark.parametrize(("width", "seen"), [(None, 5), (8, 5), (6, 4), (5, 3), (3, 3), (2, 2), (1, 1)])
def test_a_window_ends_at_positions_and_not_at_what_is_held(width, seen, monkeypatch):
    """Of positions 0, 2, 5, 6, 7 the token at 7 sees those less than ``width`` away."""
    held = torch.tensor([[0, 2, 5, 6]])
    call = Call(PruneState((2,), {2: View(held, 7)}), 7, 1, 1, torch.device("cpu"))
    monkeypatch.setattr(state, "window", lambda cache, layer: width)
    assert call.columns_at(2).tolist() == [[0, 2, 5, 6, 7]]
    mask = narrow.narrow_mask(call, 2, None, "flash_attention_2")
    expected = [place > 7 - (width or 99) for place in (0, 2, 5, 6, 7)]
    assert sum(expected) == seen
    assert mask is None if all(expected) else mask.tolist() == [expected]
    spelt_out = narrow.narrow_mask(call, 2, None, "sdpa")
    assert spelt_out is None if all(expected) else spelt_out.tolist() == [[[expected]]]
