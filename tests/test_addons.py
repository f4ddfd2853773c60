"""positions="packed": a prompt without its dropped tokens is the same as one that never had them."""

from __future__ import annotations

import copy

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.errors import CannotReselect
from adaptprune.hooks.handle import check_suits
from adaptprune.testing.zoo import SPECIMENS
from tests.addons import PACKABLE, UNPACKABLE, renumbered, shorter
from tests.families import NO_TEXT, STEPS, equal, first_layer, generate, gone, oracle, specimen, suiting

SMALL = [name for name in ("llava", "molmo2", "lfm2_vl", "kimi_k25") if name in SPECIMENS]


def packing(one, layer, **options):
    return adaptprune.prune(one.model, "random", layer=layer, keep_ratio=0.3, positions="packed", **options)


def layer_zero(one) -> bool:
    return adaptprune.families.family_of(one.model.config).smallest_layer(one.model.config) == 0


@pytest.mark.parametrize("name", UNPACKABLE)
def test_what_cannot_be_packed_is_refused_by_name(name):
    one, layer = specimen(name), first_layer(name)
    for refuse in (
        lambda: packing(one, layer),
        lambda: check_suits(one.model, adaptprune.make_pruner("random", layer=layer, positions="packed")),
    ):
        with pytest.raises(AdaptPruneError, match=f"positions='packed'.*{UNPACKABLE[name]}.*positions='original'"):
            refuse()


@torch.no_grad()
def stepped(one, cache, words):
    """Logits of words that are read one by one."""
    return torch.stack(
        [one.model(input_ids=words[:, [step]], past_key_values=cache).logits[:, -1] for step in range(words.shape[1])],
        dim=1,
    )


@pytest.mark.parametrize("name", PACKABLE)
@torch.no_grad()
def test_at_layer_0_it_is_the_shorter_prompt(name):
    """Each row of a padded batch, and what is generated after it, as the model reads the kept tokens alone."""
    one = specimen(name)
    if not layer_zero(one):
        return  # not before its first layers, which are the oracle's below
    counts = (1, 2, 0)
    inputs, pictures, texts = one.inputs(*counts), one.pictures(3), one.texts(*counts)
    with packing(one, 0) as report:
        words, logits = generate(one, inputs)
    plain = generate(one, inputs)[1]
    hidden, at = gone(one, inputs, report), 0
    for row, count in enumerate(counts):
        mine, at = pictures[at : at + count], at + count
        if not count and name in NO_TEXT:
            continue
        alone = one.read([texts[row]], [mine])
        padding = inputs["input_ids"].shape[1] - alone["input_ids"].shape[1]
        stays = sorted(set(range(alone["input_ids"].shape[1])) - {place - padding for place in hidden[row]})
        with shorter(one, stays):
            first = one.model(**alone)
            expected = stepped(one, first.past_key_values, words[[row], -STEPS:-1])
        equal(logits[row], torch.cat([first.logits[:, -1:], expected], dim=1)[0])
        assert torch.equal(plain[row], logits[row]) == (not count)


@pytest.mark.parametrize("name", PACKABLE)
@torch.no_grad()
def test_from_layer_k_on_it_is_the_oracle_renumbered(name):
    one, layer = specimen(name), first_layer(name)
    inputs = one.inputs(1, 2, 0)
    with adaptprune.prune(one.model, **suiting(name, "fastv"), keep_ratio=0.3, positions="packed") as report:
        words, logits = generate(one, inputs)
    hidden = gone(one, inputs, report)
    with oracle(one, inputs, layer, hidden), renumbered(one, layer, hidden):
        full, expected = generate(one, inputs)
    with oracle(one, inputs, layer, hidden):
        _, unpacked = generate(one, inputs)
    equal(logits, expected)
    assert torch.equal(words, full)
    assert float((logits - unpacked)[:2].abs().max()) > 1e-3
