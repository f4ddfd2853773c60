"""What was seen of the tower goes wherever pictures go: batches, generate(), features handed on, outputs kept."""

from __future__ import annotations

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.errors import CannotReselect
from adaptprune.hooks import tower
from adaptprune.hooks.locate import SHOWN as KEPT
from adaptprune.hooks.seams.parts import handed_ahead, parts_of
from adaptprune.hooks.sharing import Encoded
from tests.embedded import merged
from tests.families import specimen
from tests.spy import SHOWN, Spy
from tests.test_video import FRAMES, video_inputs
from tests.towers import same, shown, spying, stack_of

ALL = "tower:-2+tower:-1+projector"
SOME = pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "internvl"])


@SOME
@torch.no_grad()
def test_prompts_of_a_batch_are_as_they_are_alone(family):
    one = specimen(family)
    pool, texts = one.pictures(3), one.texts(2, 0, 1)
    together = shown(one, ALL, one.inputs(2, 0, 1))
    alone = shown(one, ALL, one.read([texts[0]], [pool[:2]])) + shown(one, ALL, one.read([texts[2]], [pool[2:]]))
    assert len(together) == len(alone) == 3
    for first, second in zip(together, alone, strict=True):
        same(first, second)
    assert not torch.equal(together[0].tower[-1].attention[:, :4], together[1].tower[-1].attention[:, :4])


@SOME
@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_generate_shows_what_a_forward_shows(family, beams):
    one = specimen(family)
    inputs = one.inputs(2, 1)
    expected = shown(one, ALL, inputs)
    with spying(one, ALL):
        one.model.generate(**inputs, max_new_tokens=2, num_beams=beams, do_sample=False)
    found = list(SHOWN)
    assert len(found) == beams * len(expected)
    rows = expected[:2] * beams + expected[2:] * beams
    for first, second in zip(found, rows, strict=True):
        same(first, second)


@torch.no_grad()
def test_features_that_are_handed_on():
    """As `mm_encoder_outputs`, or put among embeddings by hand."""
    one = specimen("llava")
    inputs = one.inputs(2)
    expected = shown(one, ALL, inputs)
    with spying(one, ALL):
        by_hand = merged(one.model, inputs, one.image_token_id)
        ahead = handed_ahead(one.model, inputs["pixel_values"])
        for call in ({"inputs_embeds": by_hand}, {"input_ids": inputs["input_ids"], **ahead}):
            SHOWN.clear()
            one.model(**call, attention_mask=inputs["attention_mask"])
            for first, second in zip(SHOWN, expected, strict=True):
                same(first, second)


@torch.no_grad()
def test_pictures_that_were_encoded_before():
    """Before the model was pruned; or so many pictures ago that nothing is remembered of them but their places."""
    one = specimen("llava")
    inputs = one.inputs(1)
    ahead = handed_ahead(one.model, inputs["pixel_values"])
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with (
        pytest.raises(AdaptPruneError, match=r"'tower:-1' of a picture was not seen.*Encode it while"),
        spying(one, "tower:-1"),
    ):
        one.model(**rest, **ahead)
    with spying(one, "tower:-1"):
        by_hand = merged(one.model, inputs, one.image_token_id)
        for seed in range(KEPT + 1):
            one.model.get_image_features(one.inputs(1, seed=seed + 5)["pixel_values"])
        with pytest.raises(AdaptPruneError, match="many pictures ago"):
            one.model(inputs_embeds=by_hand, attention_mask=inputs["attention_mask"])


@torch.no_grad()
def test_outputs_that_are_kept_are_encoded_again_only_if_something_was_not_seen():
    one = specimen("llava")
    model, inputs, pictures = one.model, one.inputs(1), [object()]
    expected = shown(one, ALL, inputs)
    runs = []
    hook = stack_of(one).layers[0].register_forward_hook(lambda *_: runs.append(1))
    kept = Encoded(model, parts_of(model).base, 4)

    def asked(*cues):
        runs.clear()
        for cue in cues:
            with kept.of(pictures), spying(one, cue) if cue else adaptprune.prune(model, "random"):
                model(**inputs)
        return len(runs)

    try:
        assert asked("", "") == 1
        first = asked(ALL)
        assert first >= 1
        same(SHOWN[0], expected[0])
        assert asked(ALL, "", "tower:-1") == 0
        assert asked("tower:0") >= 1
        assert asked("tower:0", ALL) == 0
        same(SHOWN[0], expected[0])
    finally:
        kept.close()
        hook.remove()


@torch.no_grad()
def test_tiles_have_class_tokens_of_their_own():
    one = specimen("internvl")
    inputs = one.inputs(1)
    (whole,) = shown(one, "tower:-1", inputs)
    SHOWN.clear()
    with adaptprune.prune(one.model, Spy(cue="tower:-1", budget="grid", keep_ratio=0.5)):
        one.model(**inputs)
    tiles = list(SHOWN)
    assert len(tiles) > 1
    assert all(tokens.tower[-1].class_query.ndim == 2 for tokens in tiles)
    queries = torch.cat([t.tower[-1].class_query.expand(len(t), -1, -1) for t in tiles])
    torch.testing.assert_close(queries, whole.tower[-1].class_query)


@torch.no_grad()
def test_the_class_state_of_tiles_is_that_of_the_whole_picture():
    one = specimen("llava_next")
    inputs = one.inputs(1)
    (tokens,) = shown(one, "class_state", inputs)
    base = one.model.model
    out = base.vision_tower(inputs["pixel_values"][0, :1], output_hidden_states=True)
    expected = base.multi_modal_projector(out.hidden_states[-2][:, :1])[0, 0]
    torch.testing.assert_close(tokens.class_state, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llava_next_video", "video_llava", "qwen2_5_vl", "kimi_k25"])
@torch.no_grad()
def test_videos(family):
    """Every frame's patches receive attention of their own frame."""
    one = specimen(family)
    inputs, (rows, columns) = video_inputs(family)
    (tokens,) = shown(one, "tower:-1", inputs)
    count = (1 if family == "kimi_k25" else FRAMES) * rows * columns
    assert len(tokens) == count
    assert tokens.tower[-1].attention.shape == (4, count)
    assert bool((tokens.tower[-1].attention > 0).all())
    with spying(one, "tower:-1"):
        one.model.generate(**inputs, max_new_tokens=1)
    same(SHOWN[0], tokens)


@SOME
def test_inference_mode(family):
    one = specimen(family)
    inputs = one.inputs(1)
    expected = shown(one, ALL, inputs)
    with torch.inference_mode(), spying(one, ALL):
        one.model(**{name: value.clone() for name, value in inputs.items()})
    same(SHOWN[0], expected[0])


def test_with_gradients_and_training_go_on():
    one = specimen("llava")
    with spying(one, ALL):
        loss = one.model(**one.inputs(1)).logits.sum()
        loss.backward()
    assert one.model.model.multi_modal_projector.linear_1.weight.grad is not None
    one.model.zero_grad(set_to_none=True)


def test_what_is_not_remembered_is_not_chosen_anew():
    with pytest.raises(CannotReselect, match="'spy' looks at tower:-1"):
        adaptprune.prune(specimen("llava").model, Spy(cue="tower:-1"), reselect=True)


@torch.no_grad()
def test_the_map_of_patches_is_made_once_for_pictures_of_one_size(monkeypatch):
    made = []
    measure = tower.measure
    monkeypatch.setattr(tower, "measure", lambda *args: made.append(1) or measure(*args))
    one = specimen("qwen2_5_vl")
    with spying(one, "tower:-1"):
        for seed in range(3):
            one.model(**one.inputs(1, seed=seed))
        assert len(made) == 1
        one.model(**one.inputs(2))
        assert len(made) == 2
