"""Devices, device maps, dtypes, attention, 4 and 8 bit."""

from __future__ import annotations

import pytest
import torch
from transformers.utils import is_accelerate_available, is_bitsandbytes_available

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.models import placement
from adaptprune.models.placement import packs_four_bits
from tests.original_layout import parts, write, write_lora
from tests.test_loading_original import logits, picture, same
from tests.tiny import batch, llava, prompt

quantised = pytest.mark.skipif(
    not (is_bitsandbytes_available() and is_accelerate_available()), reason="the quant extra is not installed"
)
dispatched = pytest.mark.skipif(not is_accelerate_available(), reason="the accelerate extra is not installed")


def by_name(model) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules()}


def weight_of(module) -> torch.Tensor:
    """The matrix that a quantised layer stands for; 8 bit before its first forward."""
    import bitsandbytes

    if isinstance(module, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    return module.weight.data.float() * module.weight.SCB[:, None] / 127


def replaced(full, model):
    """`full`, a copy of what was quantised, with the matrices that the quantised `model` stands for."""
    for name, kind in by_name(model).items():
        if kind in ("Linear4bit", "Linear8bitLt"):
            full.get_submodule(name).weight.data = weight_of(model.get_submodule(name))
    return full


@quantised
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_decoder_layers_and_nothing_else(checkpoint, bits):
    model, _ = adaptprune.load(checkpoint, device="cpu", **{f"load_in_{bits}bit": True})
    kinds = by_name(model)
    kind = f"Linear{bits}bit" + ("Lt" if bits == 8 else "")
    changed = {name for name, found in kinds.items() if found == kind}
    linear = {name for name, found in by_name(llava()).items() if found == "Linear"}
    assert changed == {name for name in linear if ".language_model.layers." in name}
    assert len(changed) == 5 * 7
    inputs = batch(prompt(1, 12))
    full = replaced(llava(), model)
    with torch.no_grad():
        ours, theirs, exact = (one(**inputs).logits for one in (model, full, llava()))
    assert not torch.allclose(ours, exact, atol=1e-3)  # it is quantised
    # 8 bit also rounds what goes into each layer, and so does 4 bit on a CPU with a kernel for bfloat16
    tolerance = 1e-3 if bits == 4 and not packs_four_bits() else 0.15 * exact.abs().max().item()
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
    with adaptprune.prune(model, "adaptprune", keep_ratio=0.25) as report:
        model.generate(**inputs, max_new_tokens=2)
    assert report.num_kept == 9


@quantised
def test_an_original_checkpoint_in_four_bits(tmp_path):
    folder = write(parts("1.6"), tmp_path)
    if packs_four_bits():
        with pytest.raises(AdaptPruneError, match="multiples of 64, and this decoder has 32: use load_in_8bit"):
            adaptprune.load(folder, device="cpu", load_in_4bit=True)
        return
    model, processor = adaptprune.load(folder, device="cpu", load_in_4bit=True)
    kinds = by_name(model)
    assert kinds["model.language_model.layers.0.mlp.up_proj"] == "Linear4bit"
    assert kinds["model.multi_modal_projector.linear_1"] == kinds["lm_head"] == "Linear"
    full = replaced(adaptprune.load(folder, device="cpu")[0], model)
    images = [picture(90, 40)]
    ours, theirs = (logits(one, processor, "USER: <image>\nWhat? ASSISTANT:", images) for one in (model, full))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@quantised
def test_lora_is_merged_into_quantised_layers(tmp_path):
    pytest.importorskip("peft", reason="the lora extra is not installed")
    made = parts("1.5")
    before = made.text.model.layers[0].mlp.down_proj.weight.detach().clone()
    adapter, base = write_lora(made, tmp_path)
    after = made.text.model.layers[0].mlp.down_proj.weight.detach()
    kind, bits = ("Linear8bitLt", 8) if packs_four_bits() else ("Linear4bit", 4)
    model, _ = adaptprune.load(adapter, model_base=base, device="cpu", **{f"load_in_{bits}bit": True})
    layer = model.model.language_model.layers[0].mlp.down_proj
    assert type(layer).__name__ == kind
    # NF4 is off by some 10 % of a Gaussian matrix, once for the base and once for the sum
    error = (weight_of(layer) - after).norm() / after.norm()
    assert error < 0.2 < (before - after).norm() / after.norm()


@dispatched
@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}])
def test_device_maps(checkpoint, tmp_path, device_map):
    model, _ = adaptprune.load(checkpoint, device_map=device_map, dtype="float32")
    inputs = {key: value.to(model.device) for key, value in batch(prompt(1, 12)).items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits.cpu(), llava()(**batch(prompt(1, 12))).logits)
    made = parts("1.6")
    same(*adaptprune.load(write(made, tmp_path), device_map=device_map, dtype="float32"), made, (90, 40))


def test_dtypes_of_an_original_checkpoint(tmp_path):
    made = parts("1.5", torch_dtype="bfloat16")
    folder = write(made, tmp_path, form="bin")
    assert adaptprune.load(folder, device="cpu")[0].dtype == torch.float32
    model, _ = adaptprune.load(folder, device="cpu", dtype="float16", attn_implementation="eager")
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float16}
    assert model.config.get_text_config()._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "cpu", "device_map": "auto"}, "exclude each other.*Leave one out"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit exclude each other"),
        ({"device_map": "automatic"}, "unknown device_map='automatic'. Did you mean 'auto'"),
        ({"device_map": {}}, "device_map={} is not allowed"),
        ({"device_map": 3}, "device_map=3 is not allowed"),
        ({"attn_implementation": "spda"}, "unknown attn_implementation 'spda'. Did you mean 'sdpa'"),
        ({"dtype": "float61"}, "unknown dtype 'float61'. Did you mean 'float16'"),
        ({"model_base": "x"}, "is a complete model, neither adapter nor projector: leave model_base out"),
        ({"vision_tower": "x"}, "a stock checkpoint has no use for vision_tower"),
    ],
)
def test_options_that_cannot_be(checkpoint, options, text):
    with pytest.raises(AdaptPruneError, match=text):
        adaptprune.load(checkpoint, **options)


def test_flash_attention_that_is_not_installed(checkpoint, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    with pytest.raises(AdaptPruneError, match="needs an NVIDIA or AMD GPU and the package flash-attn.*use 'sdpa'"):
        adaptprune.load(checkpoint, attn_implementation="flash_attention_2")


def test_packages_that_are_not_installed(checkpoint, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(
        AdaptPruneError, match="load_in_4bit needs bitsandbytes and accelerate: pip install 'adaptprune"
    ):
        adaptprune.load(checkpoint, load_in_4bit=True)
    monkeypatch.setattr("transformers.utils.is_accelerate_available", lambda: False)
    with pytest.raises(AdaptPruneError, match="device_map needs accelerate: pip install 'adaptprune"):
        adaptprune.load(checkpoint, device_map="auto")


@quantised
def test_a_device_that_cannot_quantise(checkpoint, monkeypatch):
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda", "xpu"}, raising=False)
    with pytest.raises(AdaptPruneError, match="load_in_8bit does not work on 'cpu': bitsandbytes .* knows cuda, xpu"):
        adaptprune.load(checkpoint, device="cpu", load_in_8bit=True)


@quantised
@pytest.mark.parametrize("bits", [4, 8])
def test_a_checkpoint_that_is_quantised_already(checkpoint, tmp_path, bits):
    model, processor = adaptprune.load(checkpoint, device="cpu", **{f"load_in_{bits}bit": True})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = adaptprune.load(str(tmp_path), device="cpu")
    inputs = batch(prompt(1, 12))
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)
    with pytest.raises(AdaptPruneError, match="quantised already: leave out load_in_8bit"):
        adaptprune.load(str(tmp_path), device="cpu", load_in_8bit=True)


def test_what_is_outside_of_the_decoder_is_found_for_any_family():
    assert sorted(placement.outside_of_decoder(llava().config)) == [
        "lm_head",
        "model.multi_modal_projector",
        "model.vision_tower",
    ]
