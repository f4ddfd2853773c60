"""The pruned model equals the unpruned one under a mask that hides the dropped tokens from layer K on."""

from __future__ import annotations

import pytest
import torch

import adaptprune
from tests.tiny import CASES, IMAGE, SIDE, Hidden, batch, dropped, llava, oracle, prompt

STEPS = 6
TOLERANCE = 1e-4


def kept_rows(inputs, report) -> list[torch.Tensor]:
    """Per sample, the positions of the unpruned prompt that are still there, real tokens only."""
    rows = []
    for ids, mask, sample in zip(inputs["input_ids"], inputs["attention_mask"], report.samples, strict=True):
        stays = (ids != IMAGE) & mask.bool()
        stays[sample.kept] = True
        rows.append(stays.nonzero()[:, 0])
    return rows


def steps(model, inputs, logits, cache, tokens):
    """Logits of cached decode steps over given tokens, (B, STEPS, V)."""
    mask, out = inputs["attention_mask"], []
    position = mask.sum(dim=1, keepdim=True)
    for step in range(STEPS):
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.int64)], dim=1)
        result = model(
            input_ids=tokens[:, step : step + 1],
            attention_mask=mask,
            position_ids=position + step,
            past_key_values=cache,
        )
        out.append(result.logits[:, -1])
    return torch.stack(out, dim=1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "spec", ["adaptprune:layer=2", "fastv:layer=1", "fastv:layer=4", "grid:layer=3", "random:layer=0"]
)
@torch.no_grad()
def test_prefill_and_decode_equal_the_oracle(case, attention, spec):
    model, inputs = llava(attention), CASES[case]()
    position = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    tokens = torch.randint(2, 90, (len(inputs["input_ids"]), STEPS), generator=torch.Generator().manual_seed(5))
    with adaptprune.prune(model, spec, keep_ratio=0.25) as report:
        pruned = model(**inputs, position_ids=position)
        pruned_steps = steps(model, inputs, pruned.logits, pruned.past_key_values, tokens)
    layer = adaptprune.make_pruner(spec).layer
    with oracle(model, Hidden(layer, dropped(report, inputs), inputs["attention_mask"])):
        full = model(**inputs, position_ids=position)
        full_steps = steps(model, inputs, full.logits, full.past_key_values, tokens)
    cut = pruned.logits.shape[1]
    for row, stays in enumerate(kept_rows(inputs, report)):
        length = inputs["input_ids"].shape[1]
        # padding of the prompt stays in place; padding that evens out the kept counts is on the left
        tail = length - int(stays[-1]) - 1
        got = pruned.logits[row, cut - tail - len(stays) : cut - tail]
        torch.testing.assert_close(got, full.logits[row, stays], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(pruned_steps, full_steps, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", [case for case in CASES if case != "ragged right"])
@pytest.mark.parametrize("spec", ["adaptprune:keys=previous", "adaptprune:keys=reference", "random:layer=0"])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}], ids=["greedy", "beam", "sampling"]
)
@torch.no_grad()
def test_generate_equals_the_oracle(case, spec, options):
    model, inputs = llava(), CASES[case]()
    torch.manual_seed(0)
    with adaptprune.prune(model, spec, keep_ratio=0.2) as report:
        pruned = model.generate(**inputs, max_new_tokens=STEPS, **options)
    beams = options.get("num_beams", 1)
    report.samples = report.samples[::beams]
    layer = adaptprune.make_pruner(spec).layer
    torch.manual_seed(0)
    with oracle(model, Hidden(layer, dropped(report, inputs), inputs["attention_mask"])):
        full = model.generate(**inputs, max_new_tokens=STEPS, **options)
    assert pruned.tolist() == full.tolist()
    assert pruned.shape[1] == inputs["input_ids"].shape[1] + STEPS


@pytest.mark.parametrize("spec", ["adaptprune", "random:layer=0"])
@torch.no_grad()
def test_a_batch_row_equals_the_sample_alone(spec):
    model = llava()
    prompts = [prompt(1, 9), prompt(2, 14, 3), prompt(0, 20, 4)]
    together = batch(*prompts)
    with adaptprune.prune(model, spec, keep_ratio=0.25) as report:
        rows = model.generate(**together, max_new_tokens=STEPS)[:, -STEPS:]
    samples, images = report.samples, together["pixel_values"]
    for row, (tokens, count) in enumerate(zip(prompts, (1, 2, 0), strict=True)):
        alone = batch(tokens)
        alone["pixel_values"], images = images[:count], images[count:]
        if not count:
            del alone["pixel_values"]
        with adaptprune.prune(model, spec, keep_ratio=0.25) as report:
            single = model.generate(**alone, max_new_tokens=STEPS)[:, -STEPS:]
        padding = together["input_ids"].shape[1] - len(tokens)
        assert rows[row].tolist() == single[0].tolist()
        assert samples[row].kept == [place + padding for place in report.samples[0].kept]
        assert samples[row].images == report.samples[0].images


@torch.no_grad()
def test_a_second_turn_prunes_new_images_and_keeps_old_keys():
    """A conversation continued over its cache equals the oracle over the whole of it."""
    model = llava()
    first, second = batch(prompt(1, 9)), batch(prompt(1, 7, 8), seed=2)
    whole = {"input_ids": torch.cat([first["input_ids"], second["input_ids"]], dim=1)}
    total = whole["input_ids"].shape[1]
    whole["attention_mask"] = torch.ones(1, total, dtype=torch.int64)
    for spec in ("fastv", "random:layer=0"):
        with adaptprune.prune(model, spec, keep_ratio=0.25) as report:
            turn = model(**first)
            gone = dropped(report, first)[0]
            answer = model(
                input_ids=second["input_ids"],
                pixel_values=second["pixel_values"],
                attention_mask=whole["attention_mask"],
                position_ids=torch.arange(first["input_ids"].shape[1], total)[None],
                past_key_values=turn.past_key_values,
            )
            offset = first["input_ids"].shape[1]
            assert len(report.samples[0].kept) == 9
            assert min(report.samples[0].kept) >= offset
        visual = (second["input_ids"][0] == IMAGE).nonzero()[:, 0] + offset
        gone = gone + sorted(set(visual.tolist()) - set(report.samples[0].kept))
        layer = adaptprune.make_pruner(spec).layer
        with oracle(model, Hidden(layer, [gone], whole["attention_mask"])):
            full = model(**whole, pixel_values=torch.cat([first["pixel_values"], second["pixel_values"]]))
        torch.testing.assert_close(answer.logits[:, -1], full.logits[:, -1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", ["one image", "two images", "ragged left"])
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_merged_tokens_equal_the_oracle(case, layer):
    """A rule that changes the kept tokens' states: the oracle changes them in place and hides the rest."""
    model, inputs = llava(), CASES[case]()
    position = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    with adaptprune.prune(model, "pool", keep_ratio=0.25, layer=layer) as report:
        pruned = model(**inputs, position_ids=position)

    def merged(states):
        states = states.clone()
        for row, sample in enumerate(report.samples):
            images = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0].view(-1, SIDE, SIDE)
            kept = sample.kept
            for image in images:  # 9 of 36: cells of 2 x 2
                maps = states[row, image.flatten()].view(SIDE, SIDE, -1)
                means = maps.view(3, 2, 3, 2, -1).mean(dim=(1, 3)).flatten(0, 1)
                states[row, kept[:9]], kept = means, kept[9:]
        return states

    with oracle(model, Hidden(layer, dropped(report, inputs), inputs["attention_mask"], merged)):
        full = model(**inputs, position_ids=position)
    torch.testing.assert_close(pruned.logits[:, -1], full.logits[:, -1], atol=TOLERANCE, rtol=0)
