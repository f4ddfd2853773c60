"""LLaVA and its relatives."""

from __future__ import annotations

import inspect
from typing import Any

import transformers as hf

from adaptprune.testing.specimen import (
    IMAGE,
    VIDEO,
    PixtralPrompts,
    Specimen,
    build,
    clip,
    llava_prompts,
    no_video,
    resize,
    text,
    tokenizer,
)


def llava(attention: str, decoder: Any = hf.LlamaConfig) -> Specimen:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    config = hf.LlavaConfig(vision_config=clip(), text_config=text(decoder), image_token_index=IMAGE)
    model = build(hf.LlavaForConditionalGeneration, config, attention)
    return Specimen(model, llava_prompts(LlavaImageProcessorPil))


def llava_qwen3(attention: str) -> Specimen:
    """A LLaVA with Qwen3's decoder, as the pocket model has it."""
    return llava(attention, hf.Qwen3Config)


def llava_pixtral(attention: str) -> Specimen:
    """A LLaVA with Pixtral's tower, as Pixtral 12B is published."""
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    config = hf.LlavaConfig(
        vision_config=clip(hf.PixtralVisionConfig, size=112, patch=14, head_dim=8),
        text_config=text(hf.MistralConfig, sliding_window=None),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = PixtralPrompts(PixtralImageProcessorPil(patch_size=14, size={"longest_edge": 70}), tokenizer())
    return Specimen(build(hf.LlavaForConditionalGeneration, config, attention), processor)


PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def _next(config_kind: Any, model_kind: Any, processor_kind: Any, attention: str, **more: Any) -> Specimen:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    config = config_kind(
        vision_config=clip(),
        text_config=text(hf.LlamaConfig),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        **more,
    )
    video = {"video_processor": no_video()} if processor_kind is hf.LlavaNextVideoProcessor else {}
    processor = processor_kind(
        **video,
        image_processor=LlavaNextImageProcessorPil(**resize(28), image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer(),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return Specimen(build(model_kind, config, attention), processor, sizes=[(60, 31), (33, 90), (50, 50)])


def llava_next(attention: str) -> Specimen:
    return _next(hf.LlavaNextConfig, hf.LlavaNextForConditionalGeneration, hf.LlavaNextProcessor, attention)


def llava_next_video(attention: str) -> Specimen:
    return _next(
        hf.LlavaNextVideoConfig, hf.LlavaNextVideoForConditionalGeneration, hf.LlavaNextVideoProcessor, attention,
        video_token_index=VIDEO, spatial_pool_stride=2, spatial_pool_mode="average",
    )  # fmt: skip


def llava_onevision(attention: str) -> Specimen:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    pinpoints = [[28 * rows, 28 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    config = hf.LlavaOnevisionConfig(
        vision_config=clip(hf.SiglipVisionConfig),
        text_config=text(hf.Qwen2Config),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_4",
        vision_feature_select_strategy="full",
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer(),
        video_processor=no_video(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
    )
    model = build(hf.LlavaOnevisionForConditionalGeneration, config, attention)
    return Specimen(model, processor, sizes=[(150, 40), (30, 70), (90, 90)])


class _VideoLlavaPictures(hf.LlavaProcessor):
    """In place of `VideoLlavaProcessor`, which needs torchvision; before 5.20 it names pictures otherwise."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        made = super().__call__(*args, **options)
        name = list(inspect.signature(hf.VideoLlavaModel.get_image_features).parameters)[1]
        if "pixel_values" in made and name != "pixel_values":
            made[name] = made.pop("pixel_values")
        return made


def video_llava(attention: str) -> Specimen:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = hf.VideoLlavaConfig(
        vision_config=clip(),
        text_config=text(hf.LlamaConfig),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    processor = _VideoLlavaPictures(
        CLIPImageProcessorPil(**resize(28)), tokenizer(), patch_size=7, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return Specimen(build(hf.VideoLlavaForConditionalGeneration, config, attention), processor)
