"""A tiny randomly initialised model and its real processor for every tested model type, built without any download.

A type is *tested* if it has a specimen here: a function of its name in one of these files, and its name in FILES.
Pictures go through the stock (PIL) image processors. Video processors need torchvision, so videos are prepared by hand
in tests/test_video.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

from adaptprune.families.types import TYPES
from adaptprune.hooks.seams.versions import reaches

if TYPE_CHECKING:
    from adaptprune.testing.specimen import Specimen

#: By file of this folder, its specimens, which are called by their model type.
FILES = {
    "llava": (
        "llava",
        "llava_pixtral",
        "llava_qwen3",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "video_llava",
    ),
    "qwen": ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
    "tiles": ("internvl", "idefics3", "smolvlm"),
    "gemma": ("gemma3", "paligemma", "gemma3n", "gemma4", "gemma4_unified"),
    "mistral": ("mistral3",),
    "gated_delta": ("qwen3_5", "qwen3_5_moe", "minicpmv4_6", "minicpmv4_7"),
    "grids": ("paddleocr_vl", "video_llama_3", "cosmos3_edge", "ernie4_5_vl_moe", "kimi_k25"),
    "glm": ("glm46v", "glm4v_moe", "glm4v", "glm_ocr"),
    "windows": ("exaone4_5", "hyperclovax_vision_v2", "cohere_compass", "qwen2_5_omni_thinker"),
    "squares": ("vipllava", "fast_vlm", "deepseek_vl", "janus"),
    "cohere": ("cohere2_vision", "aya_vision"),
    "tiled": ("ovis2", "perception_lm", "got_ocr2", "qianfan_ocr"),
    "lighton": ("lighton_ocr",),
    "latents": ("aria", "idefics2"),
    "liquid": ("lfm2_vl", "lfm3_vl"),
    "llama": ("llama4",),
    "molmo": ("molmo2",),
    "nemotron": ("nemotron_h_omni",),
    "step": ("step3p7",),
    "hunyuan": ("hunyuan_vl",),
    "granite": ("granite4_vision", "granite_docling"),
    "omni": ("qwen3_omni_moe_thinker",),
}


def _build(file: str, name: str, attention: str) -> Specimen:
    made: Specimen = getattr(importlib.import_module(f"{__name__}.{file}"), name)(attention)
    return made


#: The model types of specimens that are not called by theirs.
MODEL_TYPES = {"llava_pixtral": "llava", "llava_qwen3": "llava"}


def model_type(name: str) -> str:
    """The `config.model_type` of a specimen, without building it."""
    return MODEL_TYPES.get(name, name)


#: From a specimen's name to what builds it with an attention implementation, as far as its type is tested with the
#: installed transformers. Nothing is imported before it is built.
SPECIMENS: dict[str, Callable[[str], Specimen]] = {
    name: partial(_build, file, name)
    for file, names in FILES.items()
    for name in names
    if reaches(TYPES[model_type(name)].since)
}


@cache
def specimen(name: str, attention: str = "sdpa") -> Specimen:
    """One model of a family, built once per process: tests must leave it as it was."""
    return SPECIMENS[name](attention)
