"""LLaVA-1.5: every image is one grid of patch tokens, in place of a run of placeholders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from adaptprune.errors import AdaptPruneError
from adaptprune.families.base import Family, argument, raster, squares

#: Supported vision towers, and how many class tokens each puts in front of its patches.
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0, "pixtral": 0}


class Llava(Family):
    """`LlavaForConditionalGeneration` with a vision tower of fixed size (CLIP, SigLIP) or Pixtral's."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    since: ClassVar[str | None] = "5.16.1"
    summary: ClassVar[str] = "LLaVA-1.5 and its relatives (CLIP, SigLIP), Pixtral 12B: one grid per image"

    def picture_per_grid(self, config: Any) -> bool:
        return config.vision_config.model_type != "pixtral"  # padded to the largest image

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
        config = base.config
        if config.vision_config.model_type == "pixtral":
            return whole_patches(inputs, config.vision_config.patch_size)
        # "full" keeps the class token in front of the patches: it has no place on the grid and is never pruned
        full = config.vision_feature_select_strategy == "full"
        return squares(features, CLASS_TOKENS[config.vision_config.model_type] if full else 0)


def whole_patches(inputs: Mapping[str, Any], size: int) -> list[Tensor]:
    """Cells of images of any size: one token per whole square of `size` pixels, read from `image_sizes`."""
    return [raster(1, int(height) // size, int(width) // size) for height, width in argument(inputs, "image_sizes")]
