"""benchmarks/decoders.py runs, counts what it says, and docs/decoders.md shows what it wrote."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import adaptprune
from adaptprune.errors import AdaptPruneError

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "docs/results/decoders.json").read_text())
NUMBER = 2  # bytes of a bfloat16


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("decoders_benchmark", ROOT / "benchmarks/decoders.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def smoke(benchmark):
    """Both tiny decoders."""
    return {name: make(True, torch.float32) for name, make in benchmark.MODELS.items()}


@pytest.fixture(scope="module")
def document(benchmark):
    """What `--smoke --json` prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", ["decoders.py", "--smoke", "--rounds", "2", "--steps", "2", "--json"])
        benchmark.main()
    return json.loads(printed.getvalue())


def table(document, name):
    return next(each for each in document["decoders"] if each["decoder"] == name)["tables"][0]


@pytest.mark.parametrize("name", ["qwen3_5", "gemma4"])
def test_every_variant_is_measured(document, name):
    rows = table(document, name)["rows"]
    names = [row["variant"].partition(",")[0] for row in rows]
    assert names == ["unpruned", "random", "random", "fastv", "adaptprune", "smaller picture"]
    assert [row["visual_tokens_kept"] for row in rows] == [64, 16, 16, 16, 16, 16]
    assert [row["prompt_tokens"] for row in rows] == [128] * 5 + [80]
    for row in rows:
        for column in ("prefill_ms", "step_ms", "speedup"):
            assert 0 < row[column]["q1"] <= row[column]["median"] <= row[column]["q3"]
    assert rows[0]["speedup"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}


def test_the_cache_of_qwen3_5_is_what_its_full_layers_hold(document):
    """Two of eight layers keep keys (3 and 7; K is 4), one head of 64; the others remember as much always."""
    rows = table(document, "qwen3_5")["rows"]
    token = 2 * 64 * NUMBER
    held = [2 * 128, 2 * 80, 128 + 80, 128 + 80, 128 + 80, 2 * 80]
    assert [row["kv_bytes"] for row in rows] == [token * tokens for tokens in held]
    assert len({row["memory_bytes"] for row in rows}) == 1
    assert rows[0]["memory_bytes"] > 0


def test_the_cache_of_gemma4_is_what_layers_with_own_keys_hold(document):
    """Ten layers have keys: eight hold their window at most (48, one less in the cache), two everything."""
    rows = table(document, "gemma4")["rows"]
    sliding, full = 2 * 16 * NUMBER * 8 * 47, 2 * 32 * NUMBER
    held = [2 * 128, 2 * 80, 128 + 80, 128 + 80, 128 + 80, 2 * 80]
    assert [row["kv_bytes"] for row in rows] == [sliding + full * tokens for tokens in held]
    assert {row["memory_bytes"] for row in rows} == {0}


@pytest.mark.parametrize(("name", "slack"), [("qwen3_5", 0.05), ("gemma4", 0)])
def test_the_expected_cost_is_what_torch_counts(benchmark, smoke, name, slack):
    """torch counts matrix products: all that Gemma does, and of Qwen 3.5 all but the triangular solves."""
    decoder = smoke[name]
    model, layer = decoder.model, decoder.layer
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            found = {variant.name: variant for variant in benchmark.variants(decoder, 64)}
            for key, counts in (
                ("unpruned", (64, 64, 0)),
                ("random, K = 0", (64, 16, 0)),
                (f"random, K = {layer}", (64, 16, layer)),
                ("smaller picture", (16, 16, 0)),
            ):
                variant = found[key]
                pruned = adaptprune.prune(model, variant.method) if variant.method else nullcontext()
                with pruned, FlopCounterMode(display=False) as counter:
                    model(**variant.inputs, logits_to_keep=1, use_cache=True)
                expected = benchmark.prefill_flops(model, *counts)
                assert expected * (1 - slack) <= counter.get_total_flops() <= expected, key
    finally:
        model.set_attn_implementation(attention)


def test_qwen3_5_is_pruned_before_the_first_layer_that_a_cue_allows(smoke):
    decoder = smoke["qwen3_5"]
    for layer in range(1, decoder.layer):
        with pytest.raises(AdaptPruneError, match=f"layer={decoder.layer}"):
            adaptprune.prune(decoder.model, "fastv", keep_ratio=0.25, layer=layer)


def test_gemma4_is_pruned_behind_its_first_full_layer(smoke):
    decoder = smoke["gemma4"]
    kinds = decoder.model.config.text_config.layer_types
    assert kinds[: decoder.layer] == ["sliding_attention"] * (decoder.layer - 1) + ["full_attention"]
    with pytest.raises(AdaptPruneError):
        adaptprune.prune(decoder.model, "random", keep_ratio=0.25, layer=9)  # layers 10 and on read the keys of 8


def test_the_tables_shown_are_those_of_the_results(benchmark):
    shown = (ROOT / "docs/decoders.md").read_text()
    assert benchmark.markdown(RESULTS) in shown
    for text in (RESULTS["machine"], RESULTS["formula"], RESULTS["command"]):
        assert text in shown
    for decoder in RESULTS["decoders"]:
        assert decoder["shape"] in shown
