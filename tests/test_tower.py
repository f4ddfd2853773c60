"""Cues of the vision tower are its own, and those of the patches that each visual token is made of."""

from __future__ import annotations

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.hooks import tower
from adaptprune.hooks.tower import supports
from adaptprune.testing.zoo import SPECIMENS
from tests.families import specimen
from tests.spy import SHOWN
from tests.towers import shown, spying, stack_of

#: No tower whose attention can be looked at: convolutions, timm's, attention with biases of its own, or no encoder.
WITHOUT = ("gemma3n", "gemma4_unified", "fast_vlm", "perception_lm", "got_ocr2")
#: Their tokens are learned queries.
QUERIES = ("aria", "idefics2", "granite4_vision")
#: A class token goes along with the patches.
CLASS = (
    "llava", "llava_qwen3", "llava_next", "llava_next_video", "video_llava", "vipllava", "internvl", "qianfan_ocr",
    "llama4",
)  # fmt: skip
#: It is left out of what is projected, which is one layer's states.
CLASS_STATE = ("llava", "llava_qwen3", "llava_next", "llava_next_video", "video_llava")
PROJECTOR = (
    "llava", "llava_pixtral", "llava_qwen3", "llava_next", "llava_next_video", "video_llava", "vipllava", "qwen2_vl",
    "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "internvl", "idefics3", "smolvlm", "paligemma", "gemma4", "qwen3_5",
    "qwen3_5_moe", "minicpmv4_6", "minicpmv4_7", "video_llama_3", "cosmos3_edge", "kimi_k25", "exaone4_5",
    "cohere_compass", "qwen2_5_omni_thinker", "deepseek_vl", "janus", "qianfan_ocr", "lfm3_vl", "molmo2",
    "nemotron_h_omni", "qwen3_omni_moe_thinker",
)  # fmt: skip
READ = [name for name in SPECIMENS if name not in (*WITHOUT, *QUERIES)]


def marked(one, inputs, layer: int, place: int | None):
    """Every visual token's feature, of a tower in which one patch has another state behind a layer.

    Also how many patches that layer has.
    """
    count = 0

    def mark(module, args, output):
        nonlocal count
        states = output[0] if isinstance(output, tuple) else output
        mine = None if place is None else place - count
        count += states.shape[:-1].numel()
        if mine is not None and 0 <= mine < states.shape[:-1].numel():
            flat = states.flatten(0, -2).clone()
            flat[mine] += torch.linspace(-3, 4, flat.shape[-1])
            states = flat.view(states.shape)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    hook = stack_of(one).layers[layer].register_forward_hook(mark, prepend=True)  # before it is noted elsewhere
    try:
        found = [tokens.features for tokens in shown(one, "features", inputs)]
    finally:
        hook.remove()
    return torch.cat(found), count


@pytest.mark.parametrize("family", READ)
def test_a_patch_counts_in_the_token_that_changes_with_it(family, monkeypatch):
    """The attention of single patches is told apart by heads; each token's is that of the patches it is made of."""
    one = specimen(family)
    inputs = one.inputs(2)
    plain, count = marked(one, inputs, -1, None)
    patches = sorted({0, 7, count // 2 + 1, count - 1})

    def ones(start):
        def numbered(seen, *_):
            size = seen.key.shape[0] * seen.key.shape[2]
            here = torch.arange(start[0], start[0] + size)
            start[0] += size
            return (here[None] == torch.tensor(patches)[:, None]).float()

        return numbered

    start = [0]
    monkeypatch.setattr(tower, "received", ones(start))
    monkeypatch.setattr(tower, "class_row", ones(start))
    shares = torch.cat([tokens.tower[-1].attention for tokens in shown(one, "tower:-1", inputs)], dim=1)
    assert start[0] == count
    assert shares.shape == (len(patches), len(plain))
    for layer in (-1, -2):  # the last one that features are taken from
        others = torch.stack([marked(one, inputs, layer, patch)[0] for patch in patches])
        changed = (others - plain).abs().amax(dim=2) > 1e-6
        if bool(changed.any()):
            break
    assert torch.equal(shares > 0, changed)
    assert bool(changed.any())


@pytest.mark.parametrize("family", SPECIMENS)
def test_which_cues_can_be_had(family):
    """What `supports` says before anything runs is what comes of it."""
    one = specimen(family)
    had = [cue for cue in ("tower:-1", "projector", "class_state") if supports(one.model, cue) is None]
    assert ("tower:-1" in had) == (family in READ)
    assert ("projector" in had) == (family in PROJECTOR)
    assert ("class_state" in had) == (family in CLASS_STATE)
    for cue in {"tower:-1", "projector", "class_state"} - set(had):
        with pytest.raises(AdaptPruneError, match=r"hawk.*divprune") as refused, spying(one, cue):
            pass
        assert repr(cue) in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
    if not had:
        return
    first = shown(one, "+".join([*had, "features"]), one.inputs(1))[0]
    layer = first.tower[-1]
    assert layer.attention.dtype == torch.float32
    assert layer.attention.shape[1] == layer.keys.shape[1] == len(first)
    assert layer.has_class == (family in CLASS)
    assert bool((layer.attention > 0).all())
    if "projector" in had:
        again = first.project(first.projector_input)
        pair = (each - each.mean(dim=0) for each in (again, first.features))  # some add a constant, some scale
        assert bool((torch.cosine_similarity(*pair, dim=1) > 0.9999).all())
    if "class_state" in had:
        assert first.class_state.shape == first.hidden.shape[1:]
    assert first.subset(torch.tensor([0, 2])).tower[-1].attention.shape[1] == 2


def test_a_layer_that_there_is_not_is_named():
    model = specimen("llava").model
    assert supports(model, "tower:2") is None
    assert supports(model, "tower:-3") is None
    for number in (3, -4, "last"):
        assert "has 3 layers, written -3 (the first) to -1 (the last) or 0 to 2" in supports(model, f"tower:{number}")
    lacks = (
        supports(specimen("lfm3_vl").model, "tower:0") if "lfm3_vl" in SPECIMENS else "has no attention, which layers"
    )
    assert "has no attention, which layers" in lacks


@torch.no_grad()
def test_large_pictures_that_are_interpolated():
    """LLaVA-OneVision: a token of such a picture is made of several patches, and a patch makes several tokens."""
    one = specimen("llava_onevision")
    (tokens,) = shown(one, "tower:-2", one.inputs(1))
    assert bool((tokens.tower[-2].attention > 0).all())
    assert len(tokens) > 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype):
    """Which patches a token is made of is found as well with few digits."""
    for family in ("llava_next", "qwen2_5_vl"):
        from adaptprune.testing import zoo

        one, half = specimen(family), zoo.SPECIMENS[family]("sdpa")
        half.model.to(dtype)
        inputs = one.inputs(2)
        own = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        for first, second in zip(shown(one, "tower:-1", inputs), shown(half, "tower:-1", own), strict=True):
            close = torch.cosine_similarity(first.tower[-1].keys.float(), second.tower[-1].keys.float(), dim=-1)
            assert bool((close > 0.99).all())


def test_what_is_put_on_comes_off_and_nothing_is_put_on_for_nothing():
    one = specimen("llava")
    stack = stack_of(one)
    with torch.no_grad():
        plain = one.model(**one.inputs(1)).logits
    before = [attention.config for attention in stack.attentions]
    hooks = [list(layer._forward_hooks) for layer in stack.layers]  # transformers' own
    with spying(one, "features"):
        assert [attention.config for attention in stack.attentions] == before
        assert [list(layer._forward_hooks) for layer in stack.layers] == hooks
    with spying(one, "tower:-1+projector+class_state"), torch.no_grad():
        assert stack.attentions[-1].config is not before[-1]
        one.model(**one.inputs(1))
    assert all(attention.config is config for attention, config in zip(stack.attentions, before, strict=True))
    assert [list(layer._forward_hooks) for layer in stack.layers] == hooks
    assert all("forward" not in vars(layer) for layer in stack.layers)
    with torch.no_grad():
        assert torch.equal(one.model(**one.inputs(1)).logits, plain)
    SHOWN.clear()
    with torch.no_grad(), adaptprune.prune(one.model, "scope", keep_ratio=1):
        assert torch.equal(one.model(**one.inputs(1)).logits, plain)
        assert [attention.config for attention in stack.attentions] == before


class _WithoutGradients(torch.autograd.Function):
    """A kernel without gradients."""

    @staticmethod
    def forward(ctx, states):
        return states.clone()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("without gradients", "no gradients can be had of its encoder"),
        ("mixed", "it cannot be told which patches its visual tokens are made of"),
    ],
)
@torch.no_grad()
def test_what_a_projector_does_not_tell_is_refused_before_anything_is_pruned(what, said):
    """A model that nobody has seen: its projector has no gradients, or mixes all patches."""
    one, ran = specimen("qwen2_vl"), []

    def after(module, args, output):
        return _WithoutGradients.apply(output) if what == "without gradients" else output + output.mean(dim=0)

    hooks = [
        one.model.model.visual.merger.register_forward_hook(after),
        one.model.model.language_model.register_forward_hook(lambda *_: ran.append(1)),
    ]
    try:
        with pytest.raises(AdaptPruneError, match=f"'tower:-1' cannot be had of model type 'qwen2_vl': {said}.*hawk"):
            shown(one, "tower:-1", one.inputs(1))
    finally:
        for hook in hooks:
            hook.remove()
    assert not ran
