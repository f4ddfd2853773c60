"""Visual layouts, one file each: where a model's visual tokens stand in its prompt and on which grid.

A new family is a file here and a line in FAMILIES (or an entry point of another package), under its `model_type`.
"""

from __future__ import annotations

from typing import Any

from adaptprune.errors import AdaptPruneError
from adaptprune.families.base import Family, Layout, join
from adaptprune.registry import Registry

FAMILIES = Registry(
    "family",
    {
        "llava": "adaptprune.families.llava:Llava",
        "llava_next": "adaptprune.families.llava_next:LlavaNext",
        "llava_next_video": "adaptprune.families.llava_next_video:LlavaNextVideo",
        "llava_onevision": "adaptprune.families.llava_onevision:LlavaOnevision",
        "video_llava": "adaptprune.families.video_llava:VideoLlava",
        "qwen2_vl": "adaptprune.families.qwen_vl:QwenVL",
        "qwen2_5_vl": "adaptprune.families.qwen_vl:QwenVL",
        "qwen3_vl": "adaptprune.families.qwen_vl:Qwen3VL",
        "qwen3_vl_moe": "adaptprune.families.qwen_vl:Qwen3VL",
        "internvl": "adaptprune.families.internvl:InternVL",
        "gemma3": "adaptprune.families.gemma3:Gemma3",
        "idefics3": "adaptprune.families.idefics3:Idefics3",
        "smolvlm": "adaptprune.families.idefics3:Idefics3",
        "mistral3": "adaptprune.families.mistral3:Mistral3",
        "paligemma": "adaptprune.families.paligemma:PaliGemma",
    },
    group="adaptprune.families",
)

__all__ = ["FAMILIES", "Family", "Layout", "check_there", "family_of", "join", "list_families", "missing", "since"]


def list_families() -> list[str]:
    """The values of `config.model_type` that can be pruned."""
    return FAMILIES.names()


def since(model_type: str) -> str | None:
    """The first release of transformers that a registered model type works with; None if it comes from elsewhere."""
    found: str | None = vars(FAMILIES.get(model_type)).get("since")  # not what a class inherits from another model's
    return found


def missing(model_type: str) -> str | None:
    """Why a registered model type is not to be had: the installed transformers lacks it. None if it is there."""
    from adaptprune.hooks.seams.catalogue import has_model_type
    from adaptprune.hooks.seams.versions import installed

    needed = since(model_type)
    if needed is None or has_model_type(model_type):
        return None
    return f"not in transformers {installed()}; comes with {needed}"


def check_there(model_type: str) -> None:
    """Raise AdaptPruneError if a model type is registered, but not in the installed transformers."""
    from adaptprune.hooks.seams.versions import requirement

    if model_type in FAMILIES.names() and (reason := missing(model_type)):
        raise AdaptPruneError(
            f"model type {model_type!r} is {reason}: `pip install '{requirement(since(model_type))}'`."
        )


def family_of(config: Any) -> Family:
    """The family of a model's config.

    Raises
    ------
    AdaptPruneError
        No family has that model type (the supported ones are named), the installed transformers is too old for it, or
        a model with this config cannot be pruned.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES.names():
        raise AdaptPruneError(
            f"model type {model_type!r} is not a supported vision-language model. Supported: "
            f"{', '.join(list_families())} (another package can add one: see CONTRIBUTING.md)."
        )
    check_there(model_type)
    family: Family = FAMILIES.get(model_type)()
    family.check(config)
    return family
