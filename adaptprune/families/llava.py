"""LLaVA-1.5: every image is one square grid of patch tokens, in place of a run of placeholders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from adaptprune.errors import AdaptPruneError
from adaptprune.families.base import Family, Layout, raster

#: Supported vision towers, and how many class tokens each puts in front of its patches.
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}


class Llava(Family):
    """`LlavaForConditionalGeneration` with a vision tower of fixed size (CLIP, SigLIP)."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    summary: ClassVar[str] = "LLaVA-1.5 and its relatives: one square grid per image"
    supports: ClassVar[dict[str, bool]] = {
        "decoder": True,
        "encoder": False,
        "images": True,
        "video": False,
        "batch": True,
    }

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

    def layout(self, config: Any, inputs: Mapping[str, Any]) -> list[Layout] | None:
        features = (inputs.get("mm_encoder_outputs") or {}).get("image")
        if inputs.get("pixel_values") is None and features is None:
            return None
        ids = inputs.get("input_ids")
        if ids is None:
            raise AdaptPruneError(
                "pruning needs input_ids to find the visual tokens: pass them instead of inputs_embeds."
            )
        side = config.vision_config.image_size // config.vision_config.patch_size
        # "full" keeps the class token in front of the patches: it has no place on the grid and is never pruned
        full = config.vision_feature_select_strategy == "full"
        extra = CLASS_TOKENS[config.vision_config.model_type] if full else 0
        run = side * side + extra
        layouts = []
        for row in ids:
            positions = (row == config.image_token_id).nonzero()[:, 0]
            count, rest = divmod(positions.numel(), run)
            if rest:
                raise AdaptPruneError(
                    f"a prompt has {positions.numel()} image placeholders, not a multiple of the {run} that each image "
                    "takes: build the prompt with the model's own processor, and read it in one forward."
                )
            patches = positions.view(count, run)[:, extra:].flatten()
            coords = raster(count, side, side, patches.device) if count else torch.empty(0, 3, dtype=torch.int64)
            layouts.append(Layout(patches, coords.to(patches.device), coords[:, 0].to(patches.device)))
        return layouts
