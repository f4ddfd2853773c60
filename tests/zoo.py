"""A tiny randomly initialised model and its real processor for every registered family, built without any download.

`SPECIMENS` maps a `model_type` to a function that builds one; a test fails if a registered family has none. Pictures
go through the stock (PIL) image processors. Video processors need torchvision, so videos are prepared by hand: see
`video_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import processing_utils
from transformers.video_processing_utils import VideoProcessorMixin

LAYERS = 6
SPECIAL = {
    "image_token": "<image>",
    "video_token": "<video>",
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<ctx>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "break_token": "[IMG_BREAK]",
    "end_token": "[IMG_END]",
}
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
WORDS = [f"w{number}" for number in range(40)]
VOCABULARY = {
    token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *SPECIAL.values(), *TILES, *WORDS])
}
PAD, BOS, EOS = 0, 1, 2
IMAGE, VIDEO = VOCABULARY["<image>"], VOCABULARY["<video>"]


def tokenizer(**names: str) -> Any:
    """Words apart, specials whole; `names` renames the image placeholder's token."""
    inner = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {**SPECIAL, **names}
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=special,
    )
    made.add_special_tokens({"additional_special_tokens": TILES}, replace_extra_special_tokens=False)
    return made


class NoVideo(VideoProcessorMixin):
    """Stands in for a video processor, which needs torchvision."""

    merge_size = 2


if not hasattr(processing_utils.transformers_module, "VideoProcessorMixin"):
    # without torchvision a processor cannot name the class that it checks its video processor by
    processing_utils.transformers_module.VideoProcessorMixin = VideoProcessorMixin


@dataclass
class Specimen:
    """One model with its processor.

    Attributes
    ----------
    placeholder : str
        What the processor replaces with visual tokens.
    sizes : list of (int, int)
        Widths and heights of test pictures, all handled differently by the processor if it can.
    """

    model: Any
    processor: Any
    placeholder: str = "<image>"
    sizes: list[tuple[int, int]] = field(default_factory=lambda: [(60, 40), (30, 70), (50, 50)])
    image_token_id: int = IMAGE

    def pictures(self, count: int, seed: int = 0) -> list[Image.Image]:
        random = np.random.default_rng(seed)
        sizes = (self.sizes * count)[:count]
        return [Image.fromarray(random.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]

    def texts(self, *counts: int, words: int = 8, seed: int = 0) -> list[str]:
        """One prompt per count of images, of different lengths."""
        random = np.random.default_rng(seed + 1)
        texts = []
        for row, count in enumerate(counts):
            line = random.choice(WORDS, words + 3 * row).tolist()
            for image in reversed(range(count)):
                line.insert(2 + 2 * image, self.placeholder)
            texts.append(" ".join(line))
        return texts

    def read(self, texts: list[str], images: list[list[Image.Image]]) -> dict[str, Tensor]:
        """Model inputs from the processor, padded on the left."""
        some = images if any(images) else None
        batch = self.processor(images=some, text=list(texts), padding=True, return_tensors="pt")
        return {key: value for key, value in batch.items() if key != "labels"}

    def inputs(self, *counts: int, words: int = 8, seed: int = 0) -> dict[str, Tensor]:
        """A batch: one prompt per count of images."""
        pool = self.pictures(sum(counts), seed)
        starts = [sum(counts[:row]) for row in range(len(counts))]
        images = [pool[start : start + count] for start, count in zip(starts, counts, strict=True)]
        return self.read(self.texts(*counts, words=words, seed=seed), images)


def _finish(model: Any) -> Any:
    model.generation_config.eos_token_id = None  # every test runs to its full length
    model.generation_config.pad_token_id = PAD
    # a random model may say a placeholder, which a later turn would take for a picture
    model.generation_config.suppress_tokens = [IMAGE, VIDEO, VOCABULARY["<ctx>"]]
    return model.eval()


def _build(kind: Any, config: Any, attention: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return _finish(kind._from_config(config, attn_implementation=attention, dtype=dtype))


def text(kind: Any, **options: Any) -> Any:
    """A decoder's config: 6 layers of 64, grouped heads."""
    base = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,  # large enough that layers and tokens differ visibly
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    return kind(**{**base, **options})


def clip(kind: Any = hf.CLIPVisionConfig, size: int = 28, patch: int = 7, **options: Any) -> Any:
    """A tower's config: 3 layers of 32."""
    return kind(
        **{
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": size,
            "patch_size": patch,
            **options,
        }
    )


def _resize(size: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}


def llava(attention: str) -> Specimen:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    config = hf.LlavaConfig(vision_config=clip(), text_config=text(hf.LlamaConfig), image_token_index=IMAGE)
    processor = hf.LlavaProcessor(
        LlavaImageProcessorPil(**_resize(28)), tokenizer(), patch_size=7, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return Specimen(_build(hf.LlavaForConditionalGeneration, config, attention), processor)


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
    video = {"video_processor": NoVideo()} if processor_kind is hf.LlavaNextVideoProcessor else {}
    processor = processor_kind(
        **video,
        image_processor=LlavaNextImageProcessorPil(**_resize(28), image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer(),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return Specimen(_build(model_kind, config, attention), processor, sizes=[(60, 31), (33, 90), (50, 50)])


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
        video_processor=NoVideo(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
    )
    model = _build(hf.LlavaOnevisionForConditionalGeneration, config, attention)
    return Specimen(model, processor, sizes=[(150, 40), (30, 70), (90, 90)])


def video_llava(attention: str) -> Specimen:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = hf.VideoLlavaConfig(
        vision_config=clip(),
        text_config=text(hf.LlamaConfig),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    processor = hf.LlavaProcessor(
        CLIPImageProcessorPil(**_resize(28)), tokenizer(), patch_size=7, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return Specimen(_build(hf.VideoLlavaForConditionalGeneration, config, attention), processor)


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
    model = _build(getattr(hf, f"{stem}ForConditionalGeneration"), config_kind(**settings), attention)
    processor = hf.Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=7, merge_size=2, size={"shortest_edge": 14 * 14, "longest_edge": 14 * 14 * 30}
        ),
        tokenizer=tokenizer(),
        video_processor=NoVideo(),
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
        video_processor=NoVideo(),
        image_seq_length=16,
    )
    model = _build(hf.InternVLForConditionalGeneration, config, attention)
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
        ),
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=VOCABULARY["<boi>"],
        eoi_token_index=VOCABULARY["<eoi>"],
    )
    processor = hf.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 56, "width": 56}), tokenizer(), image_seq_length=16
    )
    return Specimen(_build(hf.Gemma3ForConditionalGeneration, config, attention), processor, "<boi>")


def _idefics(kind: str, attention: str) -> Specimen:
    if kind == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil as Pictures

        config_kind, vision_kind, model_kind = hf.Idefics3Config, hf.Idefics3Config, hf.Idefics3ForConditionalGeneration
    else:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil as Pictures

        config_kind, vision_kind, model_kind = hf.SmolVLMConfig, hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration
    tower = type(vision_kind().vision_config)
    config = config_kind(
        vision_config=clip(tower, size=56), text_config=text(hf.LlamaConfig).to_dict(), scale_factor=2,
        image_token_id=IMAGE, pad_token_id=PAD,
    )  # fmt: skip
    # SmolVLM's own processor insists on a video processor; its prompts are those of Idefics3
    processor = hf.Idefics3Processor(
        Pictures(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}), tokenizer(), image_seq_len=16
    )
    return Specimen(_build(model_kind, config, attention), processor, sizes=[(112, 56), (50, 50), (56, 112)])


def idefics3(attention: str) -> Specimen:
    return _idefics("idefics3", attention)


def smolvlm(attention: str) -> Specimen:
    return _idefics("smolvlm", attention)


@dataclass
class PixtralPrompts:
    """In place of `PixtralProcessor`, which needs torchvision: a break after every row, an end after the last."""

    image_processor: Any
    tokenizer: Any

    def __call__(self, images: Any, text: list[str], **options: Any) -> dict[str, Tensor]:
        flat = [image for line in images or () for image in line]
        found = self.image_processor(flat, return_tensors="pt") if flat else {}
        for height, width in found.get("image_sizes", ()):
            row = "<image> " * (int(width) // 14)
            rows = "[IMG_BREAK] ".join([row] * (int(height) // 14)).replace("<image>", "<patch>") + "[IMG_END]"
            first = next(i for i, line in enumerate(text) if "<image>" in line)
            text[first] = text[first].replace("<image>", rows, 1)
        text = [line.replace("<patch>", "<image>") for line in text]
        return {**self.tokenizer(text, **options), **found}


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
    return Specimen(_build(hf.Mistral3ForConditionalGeneration, config, attention), processor)


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
    return Specimen(_build(hf.PaliGemmaForConditionalGeneration, config, attention), processor)


SPECIMENS: dict[str, Callable[[str], Specimen]] = {
    build.__name__: build
    for build in (
        llava, llava_next, llava_next_video, llava_onevision, video_llava, qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe,
        internvl, gemma3, idefics3, smolvlm, mistral3, paligemma,
    )
}  # fmt: skip


@cache
def specimen(model_type: str, attention: str = "sdpa") -> Specimen:
    """One model of a family, built once per process: tests must leave it as it was."""
    return SPECIMENS[model_type](attention)


def video_inputs(family: str, frames: int = 4, rows: int = 1) -> dict[str, Tensor]:
    """A batch with a video in every prompt, as the processor would prepare it from `frames` frames."""
    random = torch.Generator().manual_seed(0)
    words = torch.randint(VOCABULARY["w0"], len(VOCABULARY), (rows, 9), generator=random)
    if family.startswith("qwen"):
        grid = torch.tensor([[frames, 4, 6]] * rows)  # patches; merged 2 x 2
        pixels = torch.rand(rows * frames * 24, 3 * 2 * 7 * 7, generator=random)
        start, end = VOCABULARY["<|vision_start|>"], VOCABULARY["<|vision_end|>"]
        if family.startswith("qwen3"):  # every frame apart, behind its time
            middle = [token for frame in range(frames) for token in [80 + frame, start, *[VIDEO] * 6, end]]
        else:
            middle = [start, *[VIDEO] * (6 * frames), end]
        more = {"pixel_values_videos": pixels, "video_grid_thw": grid}
    else:
        tokens = {"llava_onevision": 4 * frames + 1, "llava_next_video": 4 * frames, "video_llava": 17 * frames}[family]
        middle = [VIDEO] * tokens
        more = {"pixel_values_videos": torch.rand(rows, frames, 3, 28, 28, generator=random)}
    visual = torch.tensor([middle] * rows)
    ids = torch.cat([words[:, :3], visual, words[:, 3:]], dim=1)
    if family.startswith("qwen"):
        more["mm_token_type_ids"] = 2 * (ids == VIDEO).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}
