"""Loading a checkpoint folder, and every way in which it can fail."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import BertConfig

import adaptprune
from adaptprune import AdaptPruneError
from tests.test_loading_errors import Malicious


def test_a_folder_loads_as_stock_classes(checkpoint):
    model, processor = adaptprune.load(checkpoint)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert not model.training
    assert model.dtype == torch.float32
    assert processor.tokenizer.padding_side == "left"
    assert adaptprune.load(checkpoint, dtype="bfloat16", device="cpu")[0].dtype == torch.bfloat16
    eager, _ = adaptprune.load(checkpoint, attn_implementation="eager")
    assert eager.config.get_text_config()._attn_implementation == "eager"


def test_what_cannot_be_loaded_says_why(checkpoint, tmp_path):
    with pytest.raises(
        AdaptPruneError, match="neither a folder here nor in the cache .* HF_HUB_OFFLINE keeps from asking"
    ):
        adaptprune.load("nobody/no-such-model")
    with pytest.raises(AdaptPruneError, match="neither a folder here nor a name that the model hub could have"):
        adaptprune.load("no/such/folder")
    with pytest.raises(AdaptPruneError, match="but a file: give the folder it is in"):
        adaptprune.load(f"{checkpoint}/config.json")
    with pytest.raises(AdaptPruneError, match="unknown dtype 'float31'. Did you mean 'float32'"):
        adaptprune.load(checkpoint, dtype="float31")
    with pytest.raises(AdaptPruneError, match="no device 'cuda:97' here. Present: .*cpu"):
        adaptprune.load(checkpoint, device="cuda:97")
    BertConfig(hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path / "bert")
    with pytest.raises(AdaptPruneError, match="'bert' is no vision-language model.*`adaptprune families` lists"):
        adaptprune.load(str(tmp_path / "bert"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(AdaptPruneError, match="empty': it is no checkpoint: neither config.json"):
        adaptprune.load(str(empty))
    cut = tmp_path / "cut"
    shutil.copytree(checkpoint, cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(AdaptPruneError, match="cannot load .*cut"):
        adaptprune.load(str(cut))


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "holes"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "k_proj" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdaptPruneError, match="lacks 1 weights .*k_proj"):
        adaptprune.load(str(folder))
    with pytest.raises(AdaptPruneError, match="cannot load .*no_such_option"):
        adaptprune.load(checkpoint, no_such_option=1)


def test_where_files_come_from_is_said_to_every_part(checkpoint, monkeypatch):
    from transformers import AutoConfig, AutoProcessor

    seen = []
    for kind in (AutoConfig, AutoProcessor):
        original = kind.from_pretrained
        monkeypatch.setattr(kind, "from_pretrained", lambda *a, o=original, **k: (seen.append(k), o(*a, **k))[1])
    adaptprune.load(checkpoint, revision="main", local_files_only=True)
    assert [(k["revision"], k["local_files_only"]) for k in seen[:2]] == [("main", True)] * 2


def test_a_tower_of_another_kind_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "dinov2"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] = {"model_type": "dinov2"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        AdaptPruneError, match="'dinov2' vision tower is not supported. Supported towers: clip_vision_model"
    ):
        adaptprune.load(str(folder))


def test_a_stock_checkpoint_with_code_in_its_pickle_is_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    trap = tmp_path / "trap"
    torch.save({"lm_head.weight": Malicious(trap)}, folder / "pytorch_model.bin")
    with pytest.raises(AdaptPruneError, match="is a pickle that runs code .* refused.*safetensors"):
        adaptprune.load(str(folder))
    with pytest.raises(AdaptPruneError, match="weights_only=False would run code"):
        adaptprune.load(str(folder), weights_only=False)
    assert not trap.exists()
