"""LLaVA-1.5: every image is one grid of patch tokens, in place of a run of placeholders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adaptprune.errors import AdaptPruneError
from adaptprune.families.base import squares
from adaptprune.families.generic import Generic

#: Supported vision towers, and how many class tokens each puts in front of its patches.
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0, "pixtral": 0}


class Llava(Generic):
    """`LlavaForConditionalGeneration` with a vision tower of fixed size (CLIP, SigLIP) or Pixtral's."""

    def check(self, config: Any) -> None:
        tower = config.vision_config
        if tower.model_type not in CLASS_TOKENS:
            raise AdaptPruneError(
                f"model type 'llava' with a {tower.model_type!r} vision tower is not supported. "
                f"Supported towers: {', '.join(CLASS_TOKENS)}."
            )
        if config.vision_feature_select_strategy == "default" and not CLASS_TOKENS[tower.model_type]:
            raise AdaptPruneError(
                f"a {tower.model_type!r} vision tower has no class token, and vision_feature_select_strategy='default' "
                "cuts its first patch off instead: set it to 'full' in the model's and the processor's config."
            )

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        extra = CLASS_TOKENS[base.config.vision_config.model_type]
        if extra and base.config.vision_feature_select_strategy == "full":
            return squares(features, extra)  # the class token has no place on the grid and is never pruned
        return super().cells(base, modality, inputs, features)
