"""`adaptprune run` and `chat` with every family's checkpoint, as far as one can be written and read without a hub."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from adaptprune.hooks.seams.versions import reaches
from adaptprune.prompts import Turn
from adaptprune.testing.zoo import SPECIMENS
from tests.commands import Ran, run_here
from tests.families import FAMILY
from tests.front_ends import (
    RATIO,
    STEPS,
    Expected,
    ask_library,
    expected,
    method,
    outspoken,
    pictures,
)

#: What is said of checkpoints that need a package which these tests do without, or a tower of the zoo's own.
UNREAD = {
    **dict.fromkeys(("glm_ocr", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"), "requires `torchvision`"),
    **dict.fromkeys(("lfm2_vl", "llama4", "molmo2", "nemotron_h_omni", "step3p7"), "torchvision:"),
    "smolvlm": "num2words",
    "gemma3n": "timm",
    "fast_vlm": "stand_in_timm_wrapper",
    "perception_lm": "stand_in_timm_wrapper",
}
#: Their specimens have processors of the zoo's own, which a checkpoint cannot name.
UNWRITTEN = ("llava_pixtral", "mistral3", "got_ocr2", "aria")
#: transformers reads their tokenizers as a class of its own, which cuts the zoo's words otherwise.
OTHER_WORDS = ("qwen3_5", "qwen3_5_moe", "hyperclovax_vision_v2")
CHATTING = [
    name for name in ("llava_next", "qwen2_5_vl", "gemma3", "internvl", "kimi_k25", "minicpmv4_7") if name in SPECIMENS
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Any:
    """From a family to its specimen's folder, which its pictures lie in as well."""

    @cache
    def saved(family: str) -> Path:
        one, folder = outspoken(family), tmp_path_factory.mktemp(family)
        one.model.save_pretrained(folder)
        one.processor.save_pretrained(folder)
        for number, image in enumerate(pictures(family)):
            image.save(folder / f"{number}.png")
        return folder

    return saved


@pytest.fixture
def command(monkeypatch, capsys) -> Any:
    return lambda *words, text="": run_here(monkeypatch, capsys, *map(str, words), text=text)


def lacks(ran: Ran) -> bool:
    """Whether a release of transformers before 5.20 failed for want of a package: fewer processors do without there.

    Video-LLaVA's own processor does not fit its image processor there.
    """
    named = any(name in ran.stderr for name in ("orchvision", "timm", "pixel_values_images"))
    return not reaches("5.20") and ran.returncode == 2 and named and "Traceback" not in ran.stderr


def pruned(family: str) -> list[str]:
    return ["--method", method(family), "--keep-ratio", str(RATIO)]


def told(ran: Ran) -> dict[str, Any]:
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@FAMILY
def test_run(family, checkpoint, command):
    if family in UNWRITTEN:
        assert type(outspoken(family).processor).__module__.startswith("adaptprune.testing")
        return
    folder, found = checkpoint(family), expected(family)
    words = ["run", "--model", folder, "--device", "cpu", "--dtype", "float32", "--json", "--max-new-tokens", STEPS]
    asked = [*words, "--image", folder / "0.png", "--prompt", "w3 w4 w5 w6", *pruned(family)]
    ran = command(*asked)
    if lacks(ran):
        return
    if family in UNREAD:
        assert ran.returncode
        assert "Traceback" not in ran.stderr
        assert UNREAD[family] in " ".join(ran.stderr.split())
        return
    record, wanted = told(ran), found["one", True]
    if family in OTHER_WORDS:
        assert record["prompt_tokens"] != wanted.prompt_tokens
        return
    assert (record["answer"], record["prompt_tokens"]) == (wanted.text, wanted.prompt_tokens)
    assert (record["report"]["num_visual"], record["report"]["num_kept"]) == (wanted.visual, wanted.kept)


@pytest.mark.parametrize("family", CHATTING)
def test_chat(family, checkpoint, command):
    """A conversation of two questions with pictures in both, pruned; and one of which nothing is dropped."""
    folder, (first, second, third) = checkpoint(family), pictures(family)
    lines = ["w3 w4 w5 w6", f"/image {folder}/1.png {folder}/2.png", "w20 w21"]
    words = ["chat", "--model", folder, "--device", "cpu", "--dtype", "float32", "--json", "--max-new-tokens", STEPS]
    for options in (pruned(family), ["--method", "none"]):
        ran = command(*words, "--image", folder / "0.png", *options, text="\n".join(lines) + "\n")
        if lacks(ran):
            return
        assert ran.returncode == 0, ran.stderr
        one, two = map(json.loads, ran.stdout.splitlines())
        turns = [Turn("user", [first, "w3 w4 w5 w6"])]
        same(one, ask_library(family, turns, options[1] != "none"))
        turns += [Turn("assistant", [one["text"]]), Turn("user", [second, third, "w20 w21"])]
        same(two, ask_library(family, turns, options[1] != "none"))


def same(record: dict[str, Any], wanted: Expected) -> None:
    assert (record["text"], record["prompt_tokens"]) == (wanted.text, wanted.prompt_tokens)
    assert (record["visual_tokens"] or 0, record["visual_tokens_kept"] or 0) == (wanted.visual, wanted.kept)
