"""Audio beside pictures: its tokens stay, whatever is dropped."""

from __future__ import annotations

import pytest
import torch

import adaptprune
from adaptprune.testing.zoo import SPECIMENS
from tests.families import all_of, equal, first_layer, generate, oracle, specimen

#: How many tokens the audio below takes.
OMNI = {"qwen2_5_omni_thinker": 16, "qwen3_omni_moe_thinker": 8}
FRAMES = 64


def inputs_of(family: str) -> dict[str, torch.Tensor]:
    """One picture, then one piece of audio, with text around."""
    one = specimen(family)
    made, config = dict(one.inputs(1)), one.model.config
    audio = torch.full((1, OMNI[family]), config.audio_token_id)
    made["input_ids"] = torch.cat([made["input_ids"][:, :-3], audio, made["input_ids"][:, -3:]], dim=1)
    made["attention_mask"] = torch.ones_like(made["input_ids"])
    random = torch.Generator().manual_seed(0)
    made["input_features"] = torch.randn(1, config.audio_config.num_mel_bins, FRAMES, generator=random)
    made["feature_attention_mask"] = torch.ones(1, FRAMES, dtype=torch.int64)
    return made


@pytest.mark.parametrize("family", [name for name in OMNI if name in SPECIMENS])
@torch.no_grad()
def test_audio_tokens_stay(family):
    one, inputs, layer = specimen(family), inputs_of(family), first_layer(family)
    plain = generate(one, inputs)[1]
    other = {**inputs, "input_features": -inputs["input_features"]}
    assert (generate(one, other)[1] - plain).abs().max() > 5e-5  # it is heard, if faintly: new towers speak softly
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, layer=layer) as report:
        words, logits = generate(one, inputs)
    (sample,) = report.samples
    pictures = (inputs["input_ids"][0] == one.image_token_id).sum()
    assert sample.num_visual == pictures
    assert (inputs["input_ids"][0, sample.kept] == one.image_token_id).all()
    length = inputs["input_ids"].shape[1]
    assert report.kv_lengths[-1] == length - sample.num_visual + sample.num_kept
    hidden = [sorted(set(all_of(one, inputs)[0]) - set(sample.kept))]
    with oracle(one, inputs, layer, hidden):
        full, expected = generate(one, inputs)
    equal(logits, expected)
    assert torch.equal(words, full)
