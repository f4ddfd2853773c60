"""The stock processor of a stock checkpoint, also where torchvision is missing and images are all that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptprune.errors import AdaptPruneError

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
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    kind = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None or is_torchvision_available():
        return AutoProcessor.from_pretrained(source, **where)
    try:
        attributes = kind.get_attributes()
    except ImportError:
        raise AdaptPruneError(f"the processor of model type {config.model_type!r} {NEEDS_TORCHVISION}.") from None
    if "video_processor" not in attributes:
        return AutoProcessor.from_pretrained(source, **where)
    parts: dict[str, Any] = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    arguments = [parts[name].from_pretrained(source, **where) if name in parts else _no_video() for name in attributes]
    settings, _ = kind.get_processor_dict(source, **where)

    class Lenient(kind):  # type: ignore[misc, valid-type]
        """Skips the check of the classes, which itself imports the video processors."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
            return type(argument)

    processor = Lenient.from_args_and_dict(arguments, settings)
    processor.__class__ = kind
    return processor


def _no_video() -> Any:
    from transformers.video_processing_utils import VideoProcessorMixin

    class NoVideo(VideoProcessorMixin):
        """Stands where a video processor would, and refuses videos."""

        def __call__(self, videos: Any, **kwargs: Any) -> Any:
            raise AdaptPruneError(f"reading a video {NEEDS_TORCHVISION}.")

    return NoVideo()
