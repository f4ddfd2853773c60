"""What is assumed about transformers is named in `adaptprune/hooks/seams` alone, and is checked at `prune()`."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.hooks.seams import SEAMS, cache, calls, check, parts_of, versions
from adaptprune.hooks.seams.parts import handed_ahead, shows_pictures
from adaptprune.testing.zoo import SPECIMENS
from tests.families import specimen
from tests.tiny import CASES, llava

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "adaptprune"
SEAM_ROOM = PACKAGE / "hooks" / "seams"
#: The oracle and the tiny models stand outside: they must not know what they check by.
OUTSIDE = sorted(
    path for path in PACKAGE.rglob("*.py") if SEAM_ROOM not in path.parents and PACKAGE / "testing" not in path.parents
)
#: Names of transformers' inside: attributes, arguments and keys.
INNER = {
    "past_key_values", "mm_encoder_outputs", "pooler_output", "last_hidden_state", "get_image_features",
    "get_video_features", "image_token_id", "video_token_id", "image_token_index", "language_model", "text_model",
    "_attn_implementation", "position_embeddings", "input_layernorm", "self_attn", "k_proj", "get_text_config",
    "max_position_embeddings", "get_seq_length", "get_mask_sizes", "cumulative_length", "is_compileable", "record_past",
    "_prepare_position_ids_for_generation", "_prepare_special_tokens", "_get_logits_processor",
    "prepare_inputs_for_generation", "pack_image_features", "chat_template", "apply_chat_template", "image_mean",
    "image_std", "image_processor", "get_input_embeddings", "gradient_checkpointing", "get_base_model", "_orig_mod",
}  # fmt: skip
#: Files whose subject is the file format of a checkpoint or the building of a config, where names are its data.
FORMATS = {
    "models/original.py": {"language_model", "image_token_index"},
    "prompts/conversations.py": {"chat_template"},
    "models/tokens.py": {"chat_template", "image_processor"},
    "models/processors.py": {"image_processor"},
    "bench.py": {"image_token_index", "max_position_embeddings"},
    "engines/batch/layer.py": {"get_seq_length", "get_mask_sizes"},  # a layer of a cache has to answer to these
}
#: What may be imported from transformers elsewhere: its front door, and what it says about the installation.
PUBLIC = {"transformers", "transformers.utils"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", OUTSIDE, ids=name_of)
def test_no_other_room_knows_the_inside_of_transformers(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword):
            found.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
            assert node.module in PUBLIC, f"line {node.lineno} imports {node.module}"
            assert not {"DynamicCache", "Cache", "GenerationMixin"} & {each.name for each in node.names}
        elif isinstance(node, ast.Import):
            assert not [each.name for each in node.names if each.name.startswith("transformers.")]
    assert not found & INNER - FORMATS.get(name_of(path), set())


def test_the_exceptions_are_needed():
    for name, allowed in FORMATS.items():
        text = (PACKAGE / name).read_text()
        assert not [each for each in allowed if each not in text], name


def test_the_old_name_of_the_cache_is_in_the_seams_alone():
    done = subprocess.run(
        ["git", "grep", "-l", "past_key_values", "adaptprune/"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode > 1:
        pytest.skip("not a git checkout")
    assert done.stdout.split() == ["adaptprune/hooks/seams/cache.py"]


def test_the_window_is_the_one_that_is_installed():
    (line,) = re.findall(r'^  "transformers(>=.*?)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"transformers{line}" == versions.requirement()


@pytest.mark.parametrize(
    ("release", "tested"),
    [("5.16.1", True), ("5.16.0", False), ("5.17.0", True), ("5.24.0", True), ("5.24.7", True), ("5.25.0", False),
     ("6.0.0", False), ("4.57.6", False), ("5.25.0.dev0", False), ("5.9.0", False)],
)  # fmt: skip
def test_which_releases_are_tested(release, tested):
    assert versions.is_tested(release) is tested


@pytest.mark.parametrize("family", SPECIMENS)
def test_every_seam_is_found_on_every_family(family):
    model = specimen(family).model
    found = check(parts_of(model), parts_of(model).layers[1:2])
    assert list(found) == [seam.name for seam in SEAMS]
    assert all(found.values())
    assert found["cache"].split("=")[0] in cache.NAMES


def test_a_misfit_names_seam_release_and_window():
    model = llava()
    model.model.language_model.layers[3].self_attn.config = None
    with pytest.raises(AdaptPruneError) as error:
        adaptprune.prune(model, "fastv", layer=4)
    assert re.match(r"the attention interface: LlamaAttention has no config", str(error.value))
    for said in (versions.installed(), versions.window(), versions.requirement(), "adaptprune doctor"):
        assert said in str(error.value)


def test_a_cache_by_a_name_that_nobody_knows_is_an_error():
    made = cache.new_cache()
    assert cache.cache_in({"cache": made}) is cache.cache_in({"past_key_values": made}) is made
    assert cache.cache_in({"cache": None, "use_cache": True}) is None
    with pytest.raises(AdaptPruneError, match="a DynamicCache is handed on as 'memory'"):
        cache.cache_in({"memory": made})


def test_arguments_by_place_and_by_name_are_the_same():
    layer = llava().model.language_model.layers[0]
    states, mask = torch.zeros(1, 2, 64), torch.ones(1, 1, 2, 2)
    assert calls.layer_call(layer, (states, mask), {"use_cache": True}) == calls.layer_call(
        layer, (), {"hidden_states": states, "attention_mask": mask, "use_cache": True}
    )
    assert calls.layer_call(layer, (states, mask), {})[1] == {"attention_mask": mask}


def test_a_forward_that_hands_everything_on_is_looked_through():
    layer = llava().model.language_model.layers[0]
    names, inner = cache.parameters(layer), layer.forward
    layer.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    assert cache.parameters(layer) == names
    layer.forward = lambda hidden_states, bias: None
    assert cache.parameters(layer) == ("hidden_states", "bias")
    assert cache.parameters(torch.compile(llava().model.language_model.layers[0])) == names


@torch.no_grad()
def test_pictures_are_handed_ahead_once():
    model, inputs = llava(), CASES["two images"]()
    pixels, seen = inputs.pop("pixel_values"), []
    hook = model.model.vision_tower.register_forward_hook(lambda module, args, output: seen.append(1))
    expected = model(**inputs, pixel_values=pixels).logits
    seen.clear()
    handed = handed_ahead(model, pixels)
    assert shows_pictures(model.model, handed)
    torch.testing.assert_close(model(**inputs, **handed).logits, expected, atol=1e-5, rtol=0)
    hook.remove()
    assert len(seen) == 1
    assert not shows_pictures(model.model, inputs)


def test_an_instance_attribute_that_was_there_before_comes_back():
    """Somebody's own stand-in for a method is put back when the hooks come off."""
    model = llava()
    own = model.model.get_image_features
    model.model.get_image_features = stand_in = lambda *args, **kwargs: own(*args, **kwargs)
    stand_in.__signature__ = __import__("inspect").signature(own)
    with torch.no_grad(), adaptprune.prune(model, "random", keep_ratio=0.5) as report:
        model(**CASES["one image"]())
    assert report.num_kept == 18
    assert vars(model.model)["get_image_features"] is stand_in


def test_what_has_no_decoder_is_refused_by_its_part():
    class Empty(nn.Module):
        def get_image_features(self):
            """Never called."""

    with pytest.raises(AdaptPruneError, match="the decoder: Empty has none of language_model, text_model"):
        parts_of(Empty())
