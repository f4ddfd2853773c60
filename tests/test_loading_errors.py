"""Checkpoints in the original LLaVA layout that cannot be loaded, and what the user is told."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.models.checkpoint import Checkpoint, read_tensors
from tests.original_layout import parts, save_tensors, write
from tests.test_loading_original import same


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A complete LLaVA 1.5, and its tower next to it."""
    return Path(write(parts("1.5"), tmp_path_factory.mktemp("whole")))


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of it that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "llava"))


def edit(folder: Path, **changes) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


def test_a_missing_tower(folder, whole):
    lost = edit(folder, mm_vision_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(
        AdaptPruneError,
        match="vision tower 'openai/clip-vit-large-patch14-336' cannot be read: it is neither a folder here nor .*"
        r"as vision_tower \(--vision-tower\)",
    ):
        adaptprune.load(lost)
    same(*adaptprune.load(lost, vision_tower=str(whole.parent / "tower"), device="cpu"), parts("1.5"), (60, 60))


def test_a_tower_that_is_none(folder, tmp_path, checkpoint):
    with pytest.raises(AdaptPruneError, match="cannot be read: it has no config.json"):
        adaptprune.load(str(folder), vision_tower=str(tmp_path))
    with pytest.raises(AdaptPruneError, match="it has no preprocessor_config.json|it is a 'llava'"):
        adaptprune.load(str(folder), vision_tower=checkpoint)
    tower = shutil.copytree(folder.parent / "llava", tmp_path / "siglip")
    (tower / "config.json").write_text('{"model_type": "siglip"}')
    (tower / "preprocessor_config.json").write_text("{}")
    with pytest.raises(AdaptPruneError, match="it is a 'siglip', and LLaVA's towers are CLIP models"):
        adaptprune.load(str(folder), vision_tower=str(tower))
    edit(folder, mm_vision_tower=None)
    with pytest.raises(AdaptPruneError, match="names no mm_vision_tower: give the folder of one as vision_tower"):
        adaptprune.load(str(folder))


def test_a_tower_with_holes(tmp_path):
    made = parts("1.5")
    path = Path(write(made, tmp_path, inside=True)) / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "vision_tower" in name and "k_proj.weight" in name)
    del weights[name]
    save_file(weights, path)
    with pytest.raises(AdaptPruneError, match="lacks 1 weight .*k_proj.weight"):
        adaptprune.load(str(path.parent))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_type": "llava_mpt"}, "'llava_mpt' of the original LLaVA layout is not supported"),
        ({"model_type": "llava_qwen"}, "load the converted checkpoint instead .llava-hf/llava-onevision"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu' .* Supported: 'linear', 'mlp2x_gelu'"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature 'cls' .* Supported: 'patch', 'cls_patch'"),
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio 'anyres_max_9' .* Supported: 'square', 'pad'"),
        ({"image_aspect_ratio": "anyres"}, "mm_patch_merge_type 'flat' .* Supported: 'spatial_unpad'"),
        ({"s2": True}, "s2 True in config.json has no stock counterpart"),
        ({"mm_use_im_start_end": True}, "no rows for <im_start> and <im_end>"),
        ({"hidden_size": 48}, "has the shape .* and config.json asks for"),
        ({"num_hidden_layers": 4}, "lacks 9 weights .*layers.3"),
        ({"num_hidden_layers": 2}, "has no place for 9 weights .*layers.2"),
        ({"mm_projector_type": "linear"}, "lacks 4 weights .model.multi_modal_projector.linear_1.bias"),
        (
            {
                "image_aspect_ratio": "anyres",
                "mm_patch_merge_type": "spatial_unpad",
                "image_grid_pinpoints": "os.exit()",
            },
            "image_grid_pinpoints 'os.exit..' in config.json is no list",
        ),
        (
            {
                "image_aspect_ratio": "anyres",
                "mm_patch_merge_type": "spatial_unpad",
                "image_grid_pinpoints": "[(56, 112)]",
            },
            "lacks 1 weight .model.image_newline",
        ),
    ],
)
def test_settings_without_a_stock_counterpart(folder, change, text):
    with pytest.raises(AdaptPruneError, match=text):
        adaptprune.load(edit(folder, **change))


def test_weights_are_checked_one_by_one(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "model.vision_resampler.query": torch.ones(2)}, path)
    with pytest.raises(AdaptPruneError, match="no place for 1 weight .model.vision_resampler.query"):
        adaptprune.load(str(folder))
    name = "model.mm_projector.2.bias"
    save_file({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(AdaptPruneError, match="lacks 1 weight .model.multi_modal_projector.linear_2.bias"):
        adaptprune.load(str(folder))
    save_file({**weights, name: torch.ones(31)}, path)
    with pytest.raises(AdaptPruneError, match=r"linear_2.bias has the shape \(31,\), and config.json asks for \(32,\)"):
        adaptprune.load(str(folder))
    del weights["model.embed_tokens.weight"]
    save_file(weights, path)
    with pytest.raises(AdaptPruneError, match="no model.embed_tokens.weight"):
        adaptprune.load(str(folder))
    path.unlink()
    with pytest.raises(AdaptPruneError, match="there are no weights in it"):
        adaptprune.load(str(folder))


def test_a_complete_model_needs_no_base(folder):
    with pytest.raises(AdaptPruneError, match="is a complete model, .* leave model_base out"):
        adaptprune.load(str(folder), model_base="lmsys/vicuna-7b-v1.5")
    with pytest.raises(AdaptPruneError, match="the original LLaVA layout has no use for trust_remote_code"):
        adaptprune.load(str(folder), trust_remote_code=True)


class Malicious:
    """Would create a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_pickle_with_code_is_refused(folder, tmp_path):
    trap = tmp_path / "trap"
    (folder / "model.safetensors").unlink()
    for write_it in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write_it({"model.norm.weight": Malicious(trap)}, folder / "pytorch_model.bin")
        with pytest.raises(
            AdaptPruneError, match="pytorch_model.bin is a pickle that runs code .* refused.*safetensors"
        ):
            adaptprune.load(str(folder))
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 cut short", b"\x80\x02]q\x00."])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_damaged_files(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdaptPruneError, match=name):
        read_tensors(tmp_path / name)


def test_pickles_that_are_no_weights(tmp_path):
    for value in ([torch.ones(1)], {"a": 1}, {1: torch.ones(1)}):
        torch.save(value, tmp_path / "w.bin")
        with pytest.raises(AdaptPruneError, match="w.bin holds something else than named tensors"):
            read_tensors(tmp_path / "w.bin")


def test_indices_that_lie(tmp_path):
    save_tensors(tmp_path / "a.bin", {"x": torch.ones(1)})
    index, files = tmp_path / "model.bin.index.json", Checkpoint(str(tmp_path), {})
    for content, text in [
        ("{", "model.bin.index.json is damaged"),
        ("[]", "no JSON object"),
        ('{"weight_map": 3}', "no weight_map"),
        ('{"weight_map": {"x": 3}}', "no weight_map"),
        ('{"weight_map": {"x": "b.bin"}}', "names 'b.bin', which is missing"),
        ('{"weight_map": {"x": "../a.bin"}}', "names '../a.bin', which is missing"),
        (
            '{"weight_map": {"x": "a.bin", "y": "a.bin"}}',
            "lists 1 weights .y, ...., that no file holds|lists 1 weights",
        ),
    ]:
        index.write_text(content)
        with pytest.raises(AdaptPruneError, match=text):
            files.tensors("model")
    index.write_text('{"weight_map": {"x": "a.bin"}}')
    assert list(files.tensors("model")) == ["x"]


def test_old_pickles_that_cannot_be_mapped(tmp_path):
    torch.save({"x": torch.arange(3)}, tmp_path / "w.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path / "w.bin")["x"], torch.arange(3))


def test_a_tokenizer_that_is_missing(folder, monkeypatch):
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with monkeypatch.context() as patch:
        patch.setattr("transformers.utils.is_sentencepiece_available", lambda: False)
        patch.setattr("adaptprune.models.checkpoint.Checkpoint.tensors", None)  # before gigabytes are read
        with pytest.raises(AdaptPruneError, match="needs sentencepiece and protobuf: pip install 'adaptprune"):
            adaptprune.load(str(folder))
    (folder / "tokenizer.model").unlink()
    with pytest.raises(AdaptPruneError, match="has neither tokenizer.json nor tokenizer.model"):
        adaptprune.load(str(folder))
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(AdaptPruneError, match="has no tokenizer_config.json"):
        adaptprune.load(str(folder))
