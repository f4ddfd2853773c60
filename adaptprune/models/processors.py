"""The stock processor of a stock checkpoint, also where torchvision is missing and images are all that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams import processors as seam

NEEDS_TORCHVISION = "needs torchvision, in the build that belongs to your torch: pip install torchvision"


def read_processor(source: str, config: Any, where: Mapping[str, Any]) -> Any:
    """The processor of a checkpoint.

    transformers has image processors that do without torchvision, and no video processors. A processor with a place
    for one gets a stand-in there that refuses videos.

    Raises
    ------
    AdaptPruneError
        The processor's class itself cannot do without torchvision (Pixtral's).
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    kind = seam.class_for(config)
    if kind is None or seam.has_torchvision():
        return AutoProcessor.from_pretrained(source, **where)
    try:
        attributes = kind.get_attributes()
    except ImportError:
        raise AdaptPruneError(f"the processor of model type {config.model_type!r} {NEEDS_TORCHVISION}.") from None
    if "video_processor" not in attributes:
        return AutoProcessor.from_pretrained(source, **where)
    parts: dict[str, Any] = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    stand_in = seam.video_stand_in(_refuse_videos, **seam.video_settings(source, where))
    arguments = [parts[name].from_pretrained(source, **where) if name in parts else stand_in for name in attributes]
    try:
        return seam.build_without_check(kind, arguments, source, where)
    except AttributeError as error:  # it asks its video processor for what the checkpoint does not say
        message = f"the processor of model type {config.model_type!r} {NEEDS_TORCHVISION} ({error})."
        raise AdaptPruneError(message) from error


def _refuse_videos() -> None:
    raise AdaptPruneError(f"reading a video {NEEDS_TORCHVISION}.")
