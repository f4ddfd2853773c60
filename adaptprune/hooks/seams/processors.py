"""Processors and tokenizers: the attributes that are read from them, and which of their classes need torchvision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adaptprune.hooks.seams.cache import parameters
from adaptprune.hooks.seams.versions import misfit


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor."""
    found = getattr(processor, "tokenizer", None)
    if found is None:
        raise misfit("the processor", f"{type(processor).__name__} has no tokenizer")
    return found


def image_token(processor: Any) -> str:
    """What stands for one picture in a prompt's text."""
    return str(getattr(processor, "image_token", None) or "<image>")


def template(processor: Any) -> str:
    """The chat template of a processor, all of them if it has several, "" if it has none."""
    return str(getattr(processor, "chat_template", None) or "")


def has_template(processor: Any) -> bool:
    """Whether a processor writes conversations in its model's own format (base checkpoints of LLaVA-1.5 do not)."""
    return bool(template(processor))


def templated(
    processor: Any, messages: list[dict[str, Any]], template: str | None = None, *, continuing: bool = False
) -> str:
    """A conversation as a prompt's text that ends where the answer begins, or where the last message goes on.

    Parameters
    ----------
    template : str, optional
        A Jinja template in place of the processor's own.
    continuing : bool
        The last message is the beginning of the answer.
    """
    options = {"add_generation_prompt": not continuing, "continue_final_message": continuing}
    text: str = (
        processor.apply_chat_template(messages, **options)
        if template is None
        else tokenizer_of(processor).apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    )
    return text


def begun(processor: Any, text: str) -> bool:
    """Whether a prompt's text begins with the token that the tokenizer would put there, so that there would be two."""
    first = tokenizer_of(processor).bos_token
    return bool(first) and text.startswith(first)


def placeholders(processor: Any) -> list[str]:
    """What stands for a picture, a video or a sound in a prompt's text."""
    names = ("video_token", "audio_token")
    found = [getattr(processor, name, None) for name in names]
    return [image_token(processor), *(token for token in found if isinstance(token, str) and token)]


def added_ids(processor: Any) -> frozenset[int]:
    """Tokens beside the tokenizer's own vocabulary, found whole in any text; not those that frame it or are unknown."""
    tokenizer = tokenizer_of(processor)
    framing = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    added = tokenizer.get_added_vocab().items()
    return frozenset(number for token, number in added if token.strip() and number not in framing)


def options_for(model: Any) -> dict[str, Any]:
    """What a model's processor has to be asked for: kinds of tokens, which some leave out that their models need."""
    wanted = "mm_token_type_ids"
    return {f"return_{wanted}": True} if wanted in parameters(model) else {}


def colour_means(processor: Any) -> list[float]:
    """The mean of each colour, (3,), that is taken off pixels between 0 and 1."""
    return list(processor.image_processor.image_mean)


def colour_deviations(processor: Any) -> list[float]:
    """The deviation of each colour, (3,), by which they are divided then."""
    return list(processor.image_processor.image_std)


def crops(processor: Any) -> bool:
    """Whether all pictures are cut to one size, which can be asked for."""
    images = processor.image_processor
    return bool(getattr(images, "do_center_crop", False)) and getattr(images, "crop_size", None) is not None


def model_inputs(made: Mapping[str, Any]) -> dict[str, Any]:
    """What a processor made, without what is meant for training alone (PaliGemma's makes labels)."""
    return {name: value for name, value in made.items() if name != "labels"}


def has_torchvision() -> bool:
    """Whether torchvision is installed, in a build that fits."""
    from transformers.utils import is_torchvision_available

    return bool(is_torchvision_available())


def picture_class(kind: str) -> Any:
    """The image processor's class of a kind ("Llava"); the one of PIL where torchvision is missing."""
    import transformers

    # transformers itself falls back to this class, with a warning
    return getattr(transformers, f"{kind}ImageProcessor{'' if has_torchvision() else 'Pil'}")


def class_for(config: Any) -> Any:
    """The processor's class that belongs to a config; None if transformers names none."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    return PROCESSOR_MAPPING.get(type(config), None)


def build_without_check(kind: Any, arguments: list[Any], source: str, where: Mapping[str, Any]) -> Any:
    """A processor from its parts, without the check of their classes, which itself imports the video processors."""
    settings, _ = kind.get_processor_dict(source, **where)

    class Lenient(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
            return type(argument)

    processor = Lenient.from_args_and_dict(arguments, settings)
    processor.__class__ = kind
    return processor


def video_settings(source: str, where: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its video processor, which some processors ask it for."""
    from transformers.video_processing_utils import BaseVideoProcessor

    try:
        settings, _ = BaseVideoProcessor.get_video_processor_dict(source, **where)
    except OSError:  # it has no such file
        return {}
    return {name: value for name, value in settings.items() if name.isidentifier() and not name.startswith("_")}


def video_stand_in(refuse: Callable[[], Any], **attributes: Any) -> Any:
    """An object in a video processor's place, which needs torchvision: it calls `refuse` when a video is to be read."""
    from transformers import video_processing_utils as home

    base: Any = getattr(home, "VideoProcessorMixin", None) or home.BaseVideoProcessor  # before 5.18 there is the latter

    class NoVideo(base):
        def __init__(self) -> None:
            for name, value in attributes.items():
                setattr(self, name, value)

        def __call__(self, videos: Any, **kwargs: Any) -> Any:
            return refuse()

    return NoVideo()


def admitted(stand_in: Any) -> Any:
    """`stand_in`, once processors that check the class of their video processor let it pass.

    Without torchvision such a processor cannot name the class that it checks by; the stand-in's own base takes its
    place.
    """
    from transformers import processing_utils as home

    name = home.MODALITY_TO_BASE_CLASS_MAPPING["video_processor"]
    if not isinstance(stand_in, getattr(home.transformers_module, name, ())):
        setattr(home.transformers_module, name, type(stand_in).__mro__[1])
    return stand_in


def pictures_of(processor: Any) -> Any:
    """The part of a processor that prepares pictures; an image processor is its own."""
    return getattr(processor, "image_processor", None) or processor


def settings(processor: Any) -> str:
    """What its pictures are prepared by, as a text that differs where they are prepared otherwise."""
    pictures = pictures_of(processor)
    return f"{type(pictures).__name__} {pictures.to_dict() if hasattr(pictures, 'to_dict') else id(pictures)}"


def resizes(processor: Any) -> bool:
    """Whether pictures are scaled first, so that what else is done to them depends on their shape alone."""
    return bool(getattr(pictures_of(processor), "do_resize", True))


def pixels(processor: Any, picture: Any) -> list[Any]:
    """The tensors that a processor makes of a picture's colours, as many as there are."""
    made = pictures_of(processor)(images=[picture], return_tensors="pt")
    return [value for name, value in made.items() if "pixel" in name and value.is_floating_point()]
