"""The check that `prune` makes of models whose type is not tested: what passes, what does not, what is remembered."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from transformers import cache_utils

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.families import CHECKED
from adaptprune.families.generic import Generic
from adaptprune.hooks import passed, selfcheck
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams import parts_of
from adaptprune.hooks.seams.catalogue import image_text_types
from adaptprune.hooks.selfcheck import Failed, Trial
from adaptprune.testing.shapes import shape
from adaptprune.testing.zoo import SPECIMENS, specimen

#: A type that passes and is not tested, with an ordinary decoder.
PLAIN = next(name for name in ("glmga", "muse_spark", "pp_chart2table") if name in CHECKED)
#: Untested types: plain, NoPE layers and windows, hybrid with sparse attention, streams, fused projections.
UNTESTED = (PLAIN, "muse_glimmer", "qwen4_exp", "dots3_note", "fuyu")
there = pytest.mark.skipif("dots3_note" not in image_text_types(), reason="newer types than this transformers has")


@pytest.fixture(autouse=True)
def _forgetful(tmp_path, monkeypatch):
    """Nothing is remembered from other tests."""
    monkeypatch.setenv(passed.HOME, str(tmp_path))
    monkeypatch.setattr(passed, "_here", set())


def trial(model, *stages: int) -> Trial:
    return Trial(parts_of(model), stages or (2,))


def run(model, *stages: int) -> float:
    with selfcheck._undisturbed(model):
        return selfcheck.run(trial(model, *stages))


def model_of(name: str, attention: str = "sdpa"):
    return shape(name, attention, binds=False).model


@there
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", UNTESTED)
def test_models_that_work_pass(name, attention):
    assert run(model_of(name, attention)) < 1e-4


@pytest.mark.parametrize("name", SPECIMENS)
def test_every_tested_type_would_pass(name):
    """It is not asked of these; but where it does not hold for them it is no check."""
    from tests.families import first_layer

    assert run(specimen(name).model, first_layer(name)) < 1e-4


@pytest.mark.parametrize("stages", [(1,), (2, 4), (5,)])
def test_layers(stages):
    assert run(specimen("llava").model, *stages) < 1e-4


@there
def test_the_report_says_how_far_it_is_proven():
    one = shape(PLAIN)
    with torch.no_grad(), adaptprune.prune(one.model, "random", keep_ratio=0.3, layer=2) as report:
        one.model(**one.inputs)
    assert report.tier == "checked"
    assert report.to_dict()["tier"] == "checked"
    with torch.no_grad(), adaptprune.prune(one.model, "random", keep_ratio=0.3, layer=2, check=False) as report:
        one.model(**one.inputs)
    assert report.tier == "unchecked"
    assert "unchecked" in str(report)
    with torch.no_grad(), adaptprune.prune(specimen("llava").model, "random", layer=2) as report:
        specimen("llava").model(**specimen("llava").inputs(1))
    assert report.tier == "tested"


@there
def test_it_is_made_once(monkeypatch):
    model, made = model_of(PLAIN), []
    monkeypatch.setattr(selfcheck, "run", lambda trial: made.append(trial.stages))
    for options in ({"layer": 2}, {"layer": 2, "keep_ratio": 0.1}, {"layer": 3}, {"layer": 3}):
        adaptprune.prune(model, "random", **options).remove()
    assert made == [(2,), (3,)]
    monkeypatch.setattr(passed, "_here", set())  # another process
    adaptprune.prune(model, "random", layer=2).remove()
    assert made == [(2,), (3,)]
    other = copy.deepcopy(model)
    other.config.text_config.rms_norm_eps *= 2
    adaptprune.prune(other, "random", layer=2).remove()
    adaptprune.prune(model.to(torch.bfloat16), "random", layer=2).remove()  # what passed does not depend on the dtype
    assert made == [(2,), (3,), (2,)]
    model.to(torch.float32)


@there
@pytest.mark.parametrize("text", ["", "{", "7", '{"a": 1}', '[1, null, ["x"]]'])
def test_a_spoilt_memory_is_no_memory(tmp_path, text):
    (tmp_path / "selfcheck.json").write_text(text)
    adaptprune.prune(model_of(PLAIN), "random", layer=2).remove()
    (key,) = json.loads((tmp_path / "selfcheck.json").read_text())
    assert len(key) == 64


@there
def test_without_a_place_to_write_it_works(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(passed.HOME, str(tmp_path / "file"))
    adaptprune.prune(model_of(PLAIN), "random", layer=2).remove()


@there
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_pass(dtype):
    model = copy.deepcopy(model_of(PLAIN)).to(dtype)
    assert run(model) <= trial(model).tolerance


@there
def test_a_model_in_training_is_checked_as_it_answers_and_left_in_training():
    model = copy.deepcopy(model_of(PLAIN)).train()
    dropout = nn.Dropout(0.5).train()
    model.model.language_model.layers[3].mlp.register_forward_hook(lambda module, args, out: dropout(out))
    model.dropout = dropout
    adaptprune.prune(model, "random", layer=2).remove()
    assert all(module.training for module in model.modules())


# -- what is wrong is found --------------------------------------------------------------------------------------------


def uncut(layer: nn.Module) -> None:
    """A layer that adds something per token which it was handed elsewhere."""
    held: dict[str, torch.Tensor] = {}

    def hook(module, args, out):
        states = out if isinstance(out, torch.Tensor) else out[0]
        if states.shape[1] == 1:
            return None
        noise = held.setdefault(
            "noise", torch.randn(1, 64, states.shape[-1], generator=torch.Generator().manual_seed(0))
        )
        return states + noise[:, : states.shape[1]]

    layer.register_forward_hook(hook)


def blind(layer: nn.Module) -> None:
    """A layer that has lost its mask: it sees padding."""
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "attention_mask": None}), with_kwargs=True
    )


def leaking(layer: nn.Module) -> None:
    """A layer whose words see the last one, if there is no mask in play."""

    def hook(module, args, kwargs, out):
        if kwargs.get("attention_mask") is not None or out.shape[1] == 1 or out.shape[1] > 12:
            return None
        return out + 0.1 * out[:, -1:]

    layer.register_forward_hook(hook, with_kwargs=True)


def counting(layer: nn.Module) -> None:
    """A layer that scales states by their place in what it is handed."""

    def hook(module, args, out):
        if out.shape[1] == 1:
            return None
        return out * (1 + 0.05 * torch.arange(out.shape[1])[None, :, None])

    layer.register_forward_hook(hook)


@there
@pytest.mark.parametrize("sabotage", [uncut, blind, leaking, counting], ids=lambda work: work.__name__)
def test_a_model_that_works_otherwise_is_refused(sabotage):
    model = copy.deepcopy(model_of(PLAIN))
    sabotage(model.model.language_model.layers[4])
    with pytest.raises(AdaptPruneError, match="no tested type, and did not pass the check.*check=False"):
        adaptprune.prune(model, "random", layer=2)
    adaptprune.prune(model, "random", layer=2, check=False).remove()
    if sabotage is not uncut:  # which counts from the first token on
        adaptprune.prune(model, "random", layer=5).remove()


@there
def test_minimax_is_found_out(monkeypatch):
    """Its indexer compares positions with places in the cache: a leak that shows without a mask alone."""
    monkeypatch.setattr("adaptprune.families.REFUSED", {})
    model = model_of("minimax_m3_vl")
    with pytest.raises(AdaptPruneError, match="keeps a MiniMaxM3VLSparseCacheLayer in the KV cache"):
        adaptprune.prune(model, "random", layer=2)
    kind = next(type(layer) for layer in kv.new_cache(parts_of(model).decoder.config).layers if not kv.known(layer))
    monkeypatch.setattr(Generic, "longest", lambda self, config: (10**6, "nothing"))
    bases = (kv.PrunedLayer, kind)
    monkeypatch.setitem(kv.PRUNED, kind, type("Pruned", bases, {"_layer_type": None}))
    assert issubclass(kind, cache_utils.DynamicLayer)
    with pytest.raises(AdaptPruneError, match="did not pass the check"):
        adaptprune.prune(model, "random", layer=2)


@pytest.mark.parametrize(
    ("held", "fits"), [((17, 17, 12, 12), True), ((17, 17, 12, 13), False), ((12, 17, 12, 12), False)]
)
def test_keys_are_counted(held, fits):
    cache = cache_utils.DynamicCache()
    for index, count in enumerate(held):
        cache.update(torch.zeros(1, 1, count, 2), torch.zeros(1, 1, count, 2), index)
    if fits:
        selfcheck._check_held(cache, 2, 11)
        return
    with pytest.raises(Failed, match=r"layer \d holds \d+ keys where \d+ are left"):
        selfcheck._check_held(cache, 2, 11)


@there
def test_hooks_that_do_not_run_are_missed(monkeypatch):
    monkeypatch.setattr(selfcheck.Selector, "stages", (5,))
    model = model_of(PLAIN)
    with pytest.raises(Failed, match="the hooks did not run"), trial(model).pruning([]):
        pass


@there
def test_a_window_shorter_than_the_prompt_is_no_alarm():
    model = copy.deepcopy(model_of("muse_glimmer"))
    config = model.config.text_config
    config.sliding_window = 6
    for layer in model.model.language_model.layers:
        for module in layer.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = 6
    assert run(model) < 1e-4


@there
def test_time():
    """At most a second on a tiny model, imports aside; wide enough for a busy machine."""
    import time

    model = model_of(PLAIN)
    run(model)
    start = time.perf_counter()
    run(model)
    assert time.perf_counter() - start < 5


@there
def test_processes_do_not_spoil_one_another(tmp_path):
    script = (
        "from adaptprune.hooks import passed\nimport sys\n"
        "[passed.remember(sys.argv[1] * 62 + f'{number:02}') for number in range(20)]"
    )
    work = partial(subprocess.Popen, env={**os.environ, "ADAPTPRUNE_CACHE": str(tmp_path)})
    for process in [work([sys.executable, "-c", script, name]) for name in ("a", "b")]:
        assert process.wait(timeout=60) == 0
    found = json.loads((tmp_path / "selfcheck.json").read_text())
    assert {"a" * 62 + "19", "b" * 62 + "19"} & set(found)


#: Types that are refused by name, and what their structure, or the check, finds against them without that.
STRUCTURE = {
    "blip-2": "the cache's argument",
    "instructblip": "the cache's argument",
    "instructblipvideo": "has no get_image_features",
    "chameleon": "encodes pictures and runs the layers itself",
    "glm5_next": "did not pass the check|does not suit",
    "inkling2": "in the KV cache, which does not grow token by token",
    "inkling2_loop": "in the KV cache, which does not grow token by token",
    "inkling_mm_model": "in the KV cache, which does not grow token by token",
    "minimax_m3_vl": "in the KV cache, which does not grow token by token",
    "unlimited_ocr": "in the KV cache, which does not grow token by token",
}


@there
@pytest.mark.parametrize("name", STRUCTURE)
def test_what_is_refused_by_name_would_be_by_its_structure(name, monkeypatch):
    """A model of a kind that nobody has named yet is not pruned in silence."""
    model = model_of(name)
    with pytest.raises(AdaptPruneError, match=f"{name}.*cannot be pruned: "):
        adaptprune.prune(model, "random", layer=2)
    monkeypatch.setattr("adaptprune.families.REFUSED", {})
    with pytest.raises(AdaptPruneError, match=STRUCTURE[name]):
        adaptprune.prune(model, "random", layer=2)
