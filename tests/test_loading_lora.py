"""LoRA adapters and projectors: merged into what a stock model with those weights would be."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import adaptprune
from adaptprune import AdaptPruneError
from tests.original_layout import (
    parts,
    save_tensors,
    write,
    write_config,
    write_lora,
    write_tokenizer,
    write_tower,
)
from tests.test_loading_original import logits, picture, same
from tests.tiny import batch, llava, prompt

peft = pytest.importorskip("peft", reason="the lora extra is not installed")


@pytest.mark.parametrize("version", ["1.5", "1.6"])
def test_unmerged_llava_lora(tmp_path, version):
    made = parts(version)
    adapter, base = write_lora(made, tmp_path)
    model, processor = adaptprune.load(adapter, model_base=base, device="cpu")
    assert type(model).__module__.startswith("transformers.")
    assert not any("lora" in name for name, _ in model.named_modules())
    same(model, processor, made, (90, 40))


def test_lora_on_a_llava_as_its_base(tmp_path):
    """A second training on top of a complete LLaVA: the adapter's own projector wins over the base's."""
    made = parts("1.5")
    base = write(made, tmp_path / "first", inside=True)
    for parameter in made.projector.parameters():
        parameter.data.mul_(1.5)
    adapter, _ = write_lora(made, tmp_path / "second")
    same(*adaptprune.load(adapter, model_base=base, device="cpu"), made, (60, 60))


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_a_projector_and_its_base(tmp_path, prefix):
    made = parts("1.5")
    made.text.save_pretrained(tmp_path / "vicuna")
    write_tokenizer(made, tmp_path / "vicuna")
    folder = tmp_path / "pretrain"
    write_config(made, folder, write_tower(made, tmp_path / "tower"))
    save_tensors(folder / "mm_projector.bin", {prefix + k: v for k, v in made.projector_weights().items()})
    with pytest.raises(AdaptPruneError, match="holds a projector only: give the language model .* as model_base"):
        adaptprune.load(str(folder))
    same(*adaptprune.load(str(folder), model_base=str(tmp_path / "vicuna"), device="cpu"), made, (60, 60))


def test_lora_without_its_base_says_which(tmp_path):
    adapter, _ = write_lora(parts("1.5"), tmp_path)
    with pytest.raises(AdaptPruneError, match="unmerged LoRA weights only: .* model_base .* names 'lmsys/vicuna-7b"):
        adaptprune.load(adapter)
    with pytest.raises(AdaptPruneError, match="'no/base': it is neither a folder here nor in the cache"):
        adaptprune.load(adapter, model_base="no/base")


def test_lora_on_the_wrong_base(tmp_path, checkpoint):
    adapter, base = write_lora(parts("1.5"), tmp_path)
    with pytest.raises(AdaptPruneError, match="cannot be the base of a checkpoint in the original LLaVA layout"):
        adaptprune.load(adapter, model_base=checkpoint)
    weights = torch.load(f"{adapter}/adapter_model.bin")
    name = next(iter(weights))
    torch.save({**weights, name: weights[name][:, :-1]}, f"{adapter}/adapter_model.bin")
    with pytest.raises(AdaptPruneError, match="the adapter does not fit its base .* as model_base"):
        adaptprune.load(adapter, model_base=base)
    torch.save({**weights, name.replace("layers.0", "layers.9"): weights[name]}, f"{adapter}/adapter_model.bin")
    with pytest.raises(AdaptPruneError, match="layers.9"):
        adaptprune.load(adapter, model_base=base)
    del weights[name]
    torch.save(weights, f"{adapter}/adapter_model.bin")
    with pytest.raises(AdaptPruneError, match="lacks 1 weights .*lora_A"):
        adaptprune.load(adapter, model_base=base)


def test_a_name_with_lora_and_nothing_to_load(tmp_path):
    folder = tmp_path / "llava-v1.5-7b-lora"
    made = parts("1.5")
    write_config(made, folder, write_tower(made, tmp_path / "tower"))
    with pytest.raises(AdaptPruneError, match="its name says LoRA, but it has no adapter_config.json"):
        adaptprune.load(str(folder))


def adapt(checkpoint, tmp_path, modules_to_save=None):
    """A LoRA adapter that PEFT saved for a stock model, and the logits of the two together."""
    torch.manual_seed(3)
    model = llava()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=r".*language_model.*\.(q_proj|up_proj)",
        init_lora_weights=False,
        modules_to_save=modules_to_save,
    )
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "modules_to_save" in name:
            parameter.data.mul_(1.3)
    wrapped.peft_config["default"].base_model_name_or_path = checkpoint
    wrapped.save_pretrained(tmp_path / "adapter")
    inputs = batch(prompt(1, 12))
    with torch.no_grad():
        return tmp_path / "adapter", inputs, wrapped(**inputs).logits


def test_an_adapter_of_a_stock_model(checkpoint, tmp_path):
    folder, inputs, expected = adapt(checkpoint, tmp_path, ["multi_modal_projector"])
    for base in (None, checkpoint):
        model, _ = adaptprune.load(str(folder), model_base=base, device="cpu")
        assert type(model).__name__ == "LlavaForConditionalGeneration"
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    # the merged model is pruned as any other
    with adaptprune.prune(model, "fastv", keep_ratio=0.25, layer=1) as report:
        model(**inputs)
    assert report.num_kept == 9


def test_an_adapter_saved_for_the_layout_of_transformers_4(checkpoint, tmp_path):
    folder, inputs, expected = adapt(checkpoint, tmp_path)
    weights = load_file(folder / "adapter_model.safetensors")
    old = {k.replace("model.model.language_model.", "model.language_model.model."): v for k, v in weights.items()}
    assert old.keys() != weights.keys()
    save_file(old, folder / "adapter_model.safetensors")
    model, _ = adaptprune.load(str(folder), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_an_original_checkpoint_that_was_loaded_as_a_stock_model(tmp_path):
    """What somebody gets who loads it here and trains it with PEFT."""
    made = parts("1.5")
    base = write(made, tmp_path)
    model, processor = adaptprune.load(base, device="cpu")
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*\.q_proj", init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path / "adapter")
    question, images = "USER: <image>\nWhat? ASSISTANT:", [picture(60, 60)]
    expected = logits(wrapped, processor, question, images)
    for options in ({}, {"model_base": base, "vision_tower": str(tmp_path / "tower")}):
        again, processor = adaptprune.load(str(tmp_path / "adapter"), device="cpu", **options)
        torch.testing.assert_close(logits(again, processor, question, images), expected, atol=1e-4, rtol=1e-4)


def test_adapters_that_cannot_be_merged(checkpoint, tmp_path, monkeypatch):
    folder, _, _ = adapt(checkpoint, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, text in [
        ({"base_model_name_or_path": None}, "an adapter that names no base"),
        ({"base_model_name_or_path": str(folder)}, "its base .* is not a complete model"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "only LORA can be merged"),
        (
            {"base_model_name_or_path": "no/base"},
            "its base .no/base. cannot be used .* neither a folder here nor in the cache",
        ),
    ]:
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken, dirs_exist_ok=True)
        (broken / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(AdaptPruneError, match=text):
            adaptprune.load(str(broken))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AdaptPruneError, match="need peft: pip install 'adaptprune\\[lora\\]'"):
        adaptprune.load(str(folder))
