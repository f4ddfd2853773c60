"""A tiny randomly initialised model and its real processor for every registered family, built without any download.

`SPECIMENS` maps a name to a function that builds one; a test fails if a registered model type has none. Pictures
go through the stock (PIL) image processors. Video processors need torchvision, so videos are prepared by hand in
tests/test_video.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf

from adaptprune.testing.specimen import (
    IMAGE,
    PAD,
    VIDEO,
    VOCABULARY,
    PixtralPrompts,
    Specimen,
    build,
    clip,
    no_video,
    resize,
    text,
    tokenizer,
)


def llava(attention: str) -> Specimen:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    config = hf.LlavaConfig(vision_config=clip(), text_config=text(hf.LlamaConfig), image_token_index=IMAGE)
    processor = hf.LlavaProcessor(
        LlavaImageProcessorPil(**resize(28)), tokenizer(), patch_size=7, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return Specimen(build(hf.LlavaForConditionalGeneration, config, attention), processor)


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


def _qwen(name: str, attention: str, **vision: Any) -> Specimen:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe"}
    stem = names[name]
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32} if "moe" in name else {}
    new = name.startswith("qwen3")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    config_kind = getattr(hf, f"{stem}Config")
    inner = config_kind().text_config.__class__
    settings = {
        "text_config": text(
            inner, rope_parameters={**rope, **({"mrope_interleaved": True} if new else {})}, **moe
        ).to_dict(),
        "vision_config": {"depth": 4, "num_heads": 4, "patch_size": 7, "spatial_merge_size": 2, **vision},
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VOCABULARY["<|vision_start|>"],
        "vision_end_token_id": VOCABULARY["<|vision_end|>"],
    }
    model = build(getattr(hf, f"{stem}ForConditionalGeneration"), config_kind(**settings), attention)
    processor = hf.Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=7, merge_size=2, size={"shortest_edge": 14 * 14, "longest_edge": 14 * 14 * 30}
        ),
        tokenizer=tokenizer(),
        video_processor=no_video(),
    )
    placeholder = "<|vision_start|> <image> <|vision_end|>"
    return Specimen(model, processor, placeholder, sizes=[(70, 42), (28, 84), (56, 56)])


def qwen2_vl(attention: str) -> Specimen:
    return _qwen("qwen2_vl", attention, embed_dim=32, hidden_size=64, mlp_ratio=2)


def qwen2_5_vl(attention: str) -> Specimen:
    sizes = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "window_size": 28}
    return _qwen("qwen2_5_vl", attention, **sizes, fullatt_block_indexes=[3])


DEEPSTACK = [0, 1, 2]


def qwen3_vl(attention: str) -> Specimen:
    sizes = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "num_position_embeddings": 64}
    return _qwen("qwen3_vl", attention, **sizes, deepstack_visual_indexes=DEEPSTACK)


def qwen3_vl_moe(attention: str) -> Specimen:
    sizes = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "num_position_embeddings": 64}
    return _qwen("qwen3_vl_moe", attention, **sizes, deepstack_visual_indexes=DEEPSTACK)


def internvl(attention: str) -> Specimen:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    config = hf.InternVLConfig(
        vision_config=clip(hf.InternVLVisionConfig, size=[56, 56], patch=[7, 7]).to_dict(),
        text_config=text(hf.Qwen2Config),
        image_token_id=VOCABULARY["<ctx>"],
    )
    processor = hf.InternVLProcessor(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=tokenizer(),
        video_processor=no_video(),
        image_seq_length=16,
    )
    model = build(hf.InternVLForConditionalGeneration, config, attention)
    return Specimen(
        model, processor, "<ctx>", sizes=[(112, 56), (50, 50), (56, 168)], image_token_id=VOCABULARY["<ctx>"]
    )


def gemma3(attention: str) -> Specimen:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    config = hf.Gemma3Config(
        vision_config=clip(hf.SiglipVisionConfig, size=56),
        text_config=text(
            hf.Gemma3TextConfig,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"] * 2,
            query_pre_attn_scalar=16,
            tie_word_embeddings=False,  # tied, it would say its last word again and again
        ),
        mm_tokens_per_image=16,
        tie_word_embeddings=False,
        image_token_index=IMAGE,
        boi_token_index=VOCABULARY["<boi>"],
        eoi_token_index=VOCABULARY["<eoi>"],
    )
    processor = hf.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 56, "width": 56}), tokenizer(), image_seq_length=16
    )
    model = build(hf.Gemma3ForConditionalGeneration, config, attention)
    with torch.no_grad():  # new, it is zero, and so would be every feature
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.2)
    return Specimen(model, processor, "<boi>")


def _idefics(kind: str, attention: str) -> Specimen:
    if kind == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil as Pictures

        config_kind, vision_kind, model_kind = hf.Idefics3Config, hf.Idefics3Config, hf.Idefics3ForConditionalGeneration
    else:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil as Pictures

        config_kind, vision_kind, model_kind = hf.SmolVLMConfig, hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration
    tower = type(vision_kind().vision_config)
    config = config_kind(
        # 16 tokens a tile in patches of 8: transformers 5.20 takes the ones for a multiple of the others
        vision_config=clip(tower, size=64, patch=8), text_config=text(hf.LlamaConfig).to_dict(), scale_factor=2,
        image_token_id=IMAGE, pad_token_id=PAD,
    )  # fmt: skip
    # SmolVLM's own processor insists on a video processor; its prompts are those of Idefics3
    processor = hf.Idefics3Processor(
        Pictures(size={"longest_edge": 128}, max_image_size={"longest_edge": 64}), tokenizer(), image_seq_len=16
    )
    return Specimen(build(model_kind, config, attention), processor, sizes=[(128, 64), (50, 50), (64, 128)])


def idefics3(attention: str) -> Specimen:
    return _idefics("idefics3", attention)


def smolvlm(attention: str) -> Specimen:
    return _idefics("smolvlm", attention)


def mistral3(attention: str) -> Specimen:
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    config = hf.Mistral3Config(
        vision_config=clip(hf.PixtralVisionConfig, size=112, head_dim=8),
        text_config=text(hf.MistralConfig, sliding_window=None),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    processor = PixtralPrompts(PixtralImageProcessorPil(patch_size=14, size={"longest_edge": 70}), tokenizer())
    return Specimen(build(hf.Mistral3ForConditionalGeneration, config, attention), processor)


def paligemma(attention: str) -> Specimen:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    # PaliGemma 1 has Gemma, which has SDPA; PaliGemma 2 has Gemma 2, which is eager: soft caps, sliding windows
    gemma2 = text(hf.Gemma2Config, sliding_window=24, query_pre_attn_scalar=16)
    config = hf.PaliGemmaConfig(
        vision_config=clip(hf.SiglipVisionConfig).to_dict(),
        text_config=text(hf.GemmaConfig).to_dict() if attention != "eager" else gemma2.to_dict(),
        image_token_index=IMAGE,
        projection_dim=64,
    )
    pictures = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pictures.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(pictures, tokenizer())
    return Specimen(build(hf.PaliGemmaForConditionalGeneration, config, attention), processor)


SPECIMENS: dict[str, Callable[[str], Specimen]] = {
    build.__name__: build
    for build in (
        llava, llava_pixtral, llava_next, llava_next_video, llava_onevision, video_llava,
        qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, internvl, gemma3, idefics3, smolvlm, mistral3, paligemma,
    )
}  # fmt: skip


#: The model types of specimens that are not called by theirs.
MODEL_TYPES = {"llava_pixtral": "llava"}


def model_type(name: str) -> str:
    """The `config.model_type` of a specimen, without building it."""
    return MODEL_TYPES.get(name, name)


@cache
def specimen(name: str, attention: str = "sdpa") -> Specimen:
    """One model of a family, built once per process: tests must leave it as it was."""
    return SPECIMENS[name](attention)
