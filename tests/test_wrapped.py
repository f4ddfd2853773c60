"""Models that other libraries have changed: adapters, quantised weights, weights that move between devices."""

from __future__ import annotations

import pytest
import torch

import adaptprune
from adaptprune.models.placement import outside_of_decoder
from adaptprune.testing.oracle import hiding
from adaptprune.testing.zoo import SPECIMENS
from tests.families import TOLERANCE, first_layer, generate, gone, specimen

KINDS = pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "gemma3"])


@KINDS
def test_lora_adapters_through_peft(family):
    peft = pytest.importorskip("peft", reason="peft is the extra `lora`")
    one = SPECIMENS[family]("sdpa")
    inputs, layer = one.inputs(1, 2), first_layer(family)
    target = r".*(language_model|text_model)\.layers\.\d+\.self_attn\.(q|k|v)_proj"
    wrapped = peft.get_peft_model(one.model, peft.LoraConfig(r=4, target_modules=target, init_lora_weights=False))
    wrapped.eval()
    with torch.no_grad(), adaptprune.prune(wrapped, "adaptprune", keep_ratio=0.3, layer=layer) as report:
        out = wrapped.generate(**inputs, max_new_tokens=5, do_sample=False)
    with torch.no_grad(), hiding(one.model, layer, gone(one, inputs, report)):
        full = one.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(out, full)
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    with adaptprune.prune(wrapped, "adaptprune", keep_ratio=0.3, layer=layer):
        wrapped(**inputs, labels=labels).loss.backward()
    grads = [each.grad for name, each in wrapped.named_parameters() if "lora_B" in name]
    assert len(grads) == 3 * 6
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


@KINDS
@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_quantised_weights(family, bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is the extra `quant`")
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    SPECIMENS[family]("sdpa").model.save_pretrained(tmp_path)
    options = {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8}
    if bits == 4:
        options["bnb_4bit_compute_dtype"] = torch.float32
    one = SPECIMENS[family]("sdpa")
    config = BitsAndBytesConfig(**options, llm_int8_skip_modules=outside_of_decoder(one.model.config))
    one.model = AutoModelForImageTextToText.from_pretrained(
        tmp_path, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    ).eval()
    one.model.generation_config.eos_token_id = None
    projection = type(next(m for n, m in one.model.named_modules() if n.endswith("layers.3.self_attn.k_proj")))
    assert projection.__name__ == ("Linear4bit" if bits == 4 else "Linear8bitLt")
    inputs, layer = one.inputs(1, 2), first_layer(family)
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3, layer=layer) as report:
        words, logits = generate(one, inputs)
    with hiding(one.model, layer, gone(one, inputs, report)):
        full, expected = generate(one, inputs)
    if bits == 4:
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        assert torch.equal(words, full)
    else:  # 8-bit activations are rounded, and a batch with other rows is rounded a little differently
        torch.testing.assert_close(logits[:, 0], expected[:, 0], atol=0.3, rtol=0)


@KINDS
@torch.no_grad()
def test_hooks_of_a_device_map(family):
    """accelerate wraps every forward of a model on several devices, and copies what goes in."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is the extra `quant`")
    inputs, layer = specimen(family).inputs(1, 2), first_layer(family)
    with adaptprune.prune(specimen(family).model, "adaptprune", keep_ratio=0.3, layer=layer):
        words, logits = generate(specimen(family), inputs)
    one = SPECIMENS[family]("sdpa")
    for module in one.model.modules():
        accelerate.hooks.add_hook_to_module(
            module, accelerate.hooks.AlignDevicesHook("cpu", io_same_device=module is one.model)
        )
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3, layer=layer) as report:
        same, moved = generate(one, inputs)
    assert report.num_kept < report.num_visual
    torch.testing.assert_close(moved, logits, atol=TOLERANCE, rtol=0)
    assert torch.equal(same, words)
