"""What the tower's attention is, and what each visual token has of it: by hand, and as eager attention returns it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from adaptprune import AdaptPruneError
from adaptprune.hooks import tower
from adaptprune.hooks.received import received
from adaptprune.hooks.seams.attention import Watched
from adaptprune.testing.zoo import SPECIMENS
from tests.families import specimen
from tests.towers import shown, stack_of


def pixels(inputs):
    return inputs["pixel_values"].flatten(0, -4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("number", [0, -2, -1])
@torch.no_grad()
def test_a_class_tokens_row_is_that_of_eager_attention(number, attention):
    one, eager = specimen("llava", attention), specimen("llava", "eager")
    inputs = one.inputs(1)
    (tokens,) = shown(one, f"tower:{number}+class_state", inputs)
    out = eager.model.model.vision_tower(pixels(inputs), output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(tokens.tower[number].attention, out.attentions[number][0, :, 0, 1:], atol=1e-6, rtol=0)
    state = eager.model.model.multi_modal_projector(out.hidden_states[-2][:, :1])
    torch.testing.assert_close(tokens.class_state, state[0, 0], atol=1e-5, rtol=0)
    attention_module = stack_of(eager).attentions[number]
    normed = stack_of(eager).layers[number].layer_norm1(out.hidden_states[number if number >= 0 else number - 1])
    keys = attention_module.k_proj(normed)[0].view(17, 4, 8).transpose(0, 1)
    torch.testing.assert_close(tokens.tower[number].keys, keys[:, 1:], atol=1e-5, rtol=0)
    query = attention_module.q_proj(normed)[0, 0].view(4, 8)
    torch.testing.assert_close(tokens.tower[number].class_query, query, atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_a_class_token_it_is_what_is_received():
    one = specimen("paligemma")
    inputs = one.inputs(1)
    (tokens,) = shown(one, "tower:-2", inputs)
    out = specimen("paligemma", "eager").model.model.vision_tower(pixels(inputs), output_attentions=True)
    torch.testing.assert_close(tokens.tower[-2].attention, out.attentions[-2][0].mean(dim=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(tokens.tower[-2].attention.sum(dim=1), torch.ones(4), atol=1e-5, rtol=0)


@torch.no_grad()
def test_merged_tokens_have_the_means_of_their_patches():
    """InternVL: tiles of 8 * 8 patches behind a class token, in blocks of 2 * 2."""
    one = specimen("internvl")
    inputs = one.inputs(1)
    (tokens,) = shown(one, "tower:-1", inputs)
    out = specimen("internvl", "eager").model.model.vision_tower(pixels(inputs), output_attentions=True)
    rows = out.attentions[-1][:, :, 0, 1:]  # (tiles, H, patches)
    blocks = torch.nn.functional.avg_pool2d(rows.unflatten(2, (8, 8)), 2).flatten(2)
    torch.testing.assert_close(tokens.tower[-1].attention, blocks.transpose(0, 1).flatten(1), atol=1e-6, rtol=0)
    assert tokens.tower[-1].class_query.shape == (len(tokens), 4, 8)


def windows(grids):
    """The order in which Qwen2.5-VL reads merged patches: in windows of 2 * 2."""
    found, start = [], 0
    for _, height, width in grids.tolist():
        places = torch.arange(height * width).view(height, width) + start
        found += [
            places[row : row + 2, column : column + 2].flatten()
            for row in range(0, height, 2)
            for column in range(0, width, 2)
        ]
        start += height * width
    return torch.cat(found)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("number", [0, -1])
@torch.no_grad()
def test_what_patches_of_packed_pictures_receive(family, number):
    """Each of its own picture or window, by hand from what the attention is handed; windows are put in order again."""
    one = specimen(family)
    inputs, handed = one.inputs(2), []
    stack = stack_of(one)
    hook = stack.attentions[number].register_forward_pre_hook(
        lambda module, args, kwargs: handed.append((args, kwargs)), with_kwargs=True
    )
    found = shown(one, f"tower:{number}", inputs)
    hook.remove()
    (args, kwargs), attention = handed[0], stack.attentions[number]
    states = args[0] if args else kwargs["hidden_states"]
    module = __import__(type(attention).__module__, fromlist=["apply_rotary_pos_emb_vision"])
    query, key, _ = attention.qkv(states).view(len(states), 3, 4, -1).unbind(1)
    query, key = module.apply_rotary_pos_emb_vision(query, key, *kwargs["position_embeddings"])
    ends, lines = kwargs["cu_seqlens"].tolist(), []
    for start, stop in pairwise(ends):
        scores = torch.einsum("qhd,khd->hqk", query[start:stop], key[start:stop]) / query.shape[-1] ** 0.5
        lines.append(torch.softmax(scores, dim=-1).mean(dim=1))
    whole = torch.cat(lines, dim=1).view(4, -1, 4).mean(dim=2)
    means = key.transpose(0, 1).reshape(4, -1, 4, key.shape[-1]).mean(dim=2)
    if family == "qwen2_5_vl":
        back = windows(inputs["image_grid_thw"] // 2).argsort()
        whole, means = whole[:, back], means[:, back]
        assert (len(ends) > 3) == (number == 0)
    attentions = torch.cat([tokens.tower[number].attention for tokens in found], dim=1)
    torch.testing.assert_close(attentions, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        torch.cat([tokens.tower[number].keys for tokens in found], dim=1), means, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "family",
    [
        name
        for name in (
            "llava_pixtral",
            "lfm2_vl",
            "gemma4",
            "idefics3",
            "nemotron_h_omni",
            "kimi_k25",
            "video_llama_3",
            "hunyuan_vl",
            "ernie4_5_vl_moe",
            "glm4v",
            "minicpmv4_6",
            "paddleocr_vl",
            "step3p7",
            "molmo2",
            "lfm3_vl",
        )
        if name in SPECIMENS
    ],
)
@torch.no_grad()
def test_pictures_and_padding_do_not_see_one_another(family):
    """Packed under a mask, or padded: what a picture's patches receive is 1 in all, and the same without the others."""
    one = specimen(family)
    pool = one.pictures(2)
    alone = shown(one, "tower:-1", one.read(one.texts(1), [pool[:1]]))
    both = shown(one, "tower:-1", one.read(one.texts(2), [pool]))
    torch.testing.assert_close(alone[0].tower[-1].attention, both[0].tower[-1].attention, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone[0].tower[-1].keys, both[0].tower[-1].keys, atol=1e-5, rtol=0)


def test_pictures_in_one_sequence_without_a_mask_are_refused():
    """As Pixtral's are under flash attention, which tells them apart by their positions."""
    states = torch.zeros(1, 2, 6, 4)
    seen = Watched(states, states, None, None, None, None)
    one_picture, two = torch.tensor([-1, 0, 0, 0, 0, 0]), torch.tensor([0, 0, 0, 1, 1, -1])
    tower._check_apart([seen], one_picture, False)
    tower._check_apart([seen._replace(lengths=torch.tensor([0, 3, 6]))], two, False)
    with pytest.raises(AdaptPruneError, match="attn_implementation='sdpa'"):
        tower._check_apart([seen], two, False)
    with pytest.raises(AdaptPruneError, match="class tokens of several pictures"):
        tower._check_apart([seen._replace(mask=torch.zeros(1, 1, 6, 6))], two, True)


@pytest.mark.parametrize("form", ["lengths", "additive", "boolean", "block"])
def test_every_way_to_tell_pictures_apart(form):
    """Lengths, as flash attention has them, and masks of every kind say the same."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 8, 4, generator=generator) for _ in range(2))
    parts = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
    sees = (parts[:, None] == parts[None])[None, None]
    mask, lengths = None, None
    if form == "lengths":
        lengths = torch.tensor([0, 3, 7, 8])
    elif form == "additive":
        mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    elif form == "boolean":
        mask = sees
    else:
        mask = create_block_mask(lambda b, h, q, k: parts[q] == parts[k], 1, None, 8, 8, device="cpu", BLOCK_SIZE=8)
    found = received(Watched(query, key, mask, None, None, None, lengths))
    whole = torch.einsum("hqd,hkd->hqk", query[0], key[0]) / 2
    expected = torch.cat([
        torch.softmax(whole[:, places][:, :, places], dim=-1).mean(dim=1)
        for places in (slice(0, 3), slice(3, 7), slice(7, 8))
    ], dim=1)  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_padding_neither_sees_nor_is_seen():
    """Whether a mask is 2-D, as flash attention has it, or 4-D; padding's own rows do not count."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 2, 6, 4, generator=generator) for _ in range(2))
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    flat = received(Watched(query, key, real, None, None, None))
    deep = received(Watched(query, key, real.bool()[:, None, None].expand(2, 1, 6, 6), None, None, None))
    torch.testing.assert_close(flat, deep)
    short = received(Watched(query[1:, :, :4], key[1:, :, :4], None, None, None, None))
    torch.testing.assert_close(flat.view(2, 2, 6)[:, 1, :4], short)
    assert bool((flat.view(2, 2, 6)[:, 1, 4:] == 0).all())
