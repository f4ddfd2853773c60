"""Attention kernels other than SDPA and eager, and compiled layers, on a machine without an accelerator.

Flash attention needs one; here a plain function with its interface stands in for it: it is handed transformers' own
masks for flash (none, or the 2-D padding mask), unpads by them, and counts causality and windows in held keys.
"""

from __future__ import annotations

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.hooks.seams import parts_of
from adaptprune.testing.zoo import SPECIMENS
from tests.families import BIDIRECTIONAL, FAMILY, TOLERANCE, WINDOWED, generate, pruned, specimen

STAND_IN = "flash_stand_in"


def flash(module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, **kwargs):
    """What flash attention computes, row by row: (B, L, H, d)."""
    positions = kwargs.get("position_ids")
    if attention_mask is None and positions is not None:
        assert bool((positions.diff() == 1).all()), "flash attention would take gaps for borders of packed sequences"
    key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], dim=1) for states in (key, value))
    length = query.shape[2]
    output = torch.zeros_like(query)
    for row in range(len(query)):
        keep = torch.ones(key.shape[2], dtype=torch.bool) if attention_mask is None else attention_mask[row].bool()
        lines = keep[-length:]
        q, k, v = query[row][:, lines], key[row][:, keep], value[row][:, keep]
        scores = q @ k.transpose(1, 2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        place = torch.arange(k.shape[1])
        own = place[k.shape[1] - q.shape[1] :]
        seen = place[None] <= own[:, None]
        if sliding_window is not None:
            seen &= place[None] > own[:, None] - sliding_window
        output[row][:, lines] = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
    return output.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(STAND_IN, flash)
ALL_MASK_ATTENTION_FUNCTIONS.register(STAND_IN, flash_attention_mask)


def flashed(family: str):
    """A specimen whose decoder runs the stand-in."""
    one = SPECIMENS[family]("sdpa")
    parts_of(one.model).decoder.config._attn_implementation = STAND_IN
    return one


# flash attention cannot see an image's tokens in both directions, so these models do not run with it
CAUSAL = [name for name in SPECIMENS if name not in BIDIRECTIONAL]


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("evict_below", [False, True])
@torch.no_grad()
def test_flash_attention_equals_sdpa(family, evict_below):
    one, other = flashed(family), specimen(family)
    inputs = one.inputs(1, 2, 0)
    if family in WINDOWED:
        with (
            pruned(one, family, evict_below=evict_below),
            pytest.raises(AdaptPruneError, match="more than the decoder's sliding window.*'sdpa'"),
        ):
            one.model(**inputs)
        return
    if family == "llama4":  # nor unpruned
        with pytest.raises(ValueError, match="Flash attention cannot handle chunked attention"):
            one.model(**inputs)
        return
    with pruned(one, family, evict_below=evict_below) as report:
        words, logits = generate(one, inputs)
        assert report.attention_backend == STAND_IN
        kept = [sample.kept for sample in report.samples]
    with pruned(other, family, evict_below=evict_below) as report:
        full, expected = generate(other, inputs)
    assert kept == [sample.kept for sample in report.samples]
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    assert torch.equal(words, full)


@torch.no_grad()
def test_flash_attention_and_a_prompt_beyond_the_sliding_window():
    one = flashed("mistral3")
    config = one.model.model.language_model.config
    config.sliding_window = 20
    with adaptprune.prune(one.model, "random"), pytest.raises(AdaptPruneError, match="sliding window of 20.*'sdpa'"):
        one.model(**one.inputs(2))


@FAMILY
@torch.no_grad()
def test_flex_attention_equals_sdpa(family):
    if not specimen(family).model._supports_flex_attn:
        pytest.skip("transformers has no flex attention for this model")
    other = specimen(family)
    inputs = other.inputs(1, 2, 0)
    with pruned(other, family):
        words, logits = generate(other, inputs)
    try:
        one = SPECIMENS[family]("flex_attention")
    except ValueError as error:  # a part of it
        if "does not support an attention implementation through torch's flex_attention" not in str(error):
            raise
        pytest.skip(f"transformers has no flex attention for {str(error).split()[0]}")
    # the CPU build compiles flex attention only where a C++ compiler is set up; the plain one is the same function
    with (
        torch.compiler.set_stance("force_eager"),
        pruned(one, family) as report,
    ):
        same, flexed = generate(one, inputs)
    assert report.attention_backend == "flex_attention"
    torch.testing.assert_close(flexed, logits, atol=TOLERANCE, rtol=0)
    assert torch.equal(same, words)


@pytest.mark.parametrize("how", ["in place", "wrapped"])
@torch.no_grad()
def test_compiled_layers(how):
    one = SPECIMENS["llava"]("sdpa")
    inputs = one.inputs(1, 2)
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3, layer=3):
        words, logits = generate(one, inputs)
    layers = one.model.model.language_model.layers
    for index in range(len(layers)):
        if how == "in place":
            layers[index].compile(backend="aot_eager")
        else:
            layers[index] = torch.compile(layers[index], backend="aot_eager")
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3, layer=3) as report:
        same, compiled = generate(one, inputs)
    assert report.num_kept < report.num_visual
    torch.testing.assert_close(compiled, logits, atol=TOLERANCE, rtol=0)
    assert torch.equal(same, words)


def test_a_compiled_model_is_refused():
    with pytest.raises(AdaptPruneError, match="wrapped by torch.compile.*compile its decoder layers"):
        adaptprune.prune(torch.compile(specimen("llava").model, backend="eager"), "random")
