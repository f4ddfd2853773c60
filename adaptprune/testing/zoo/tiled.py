"""More models that cut pictures into square tiles."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import transformers as hf

from adaptprune.testing.specimen import (
    IMAGE,
    VIDEO,
    VOCABULARY,
    Specimen,
    build,
    clip,
    no_video,
    reserved,
    text,
    tokenizer,
)
from adaptprune.testing.towers import stand_in

SIZES = [(112, 56), (50, 50), (56, 168)]


def ovis2(attention: str) -> Specimen:
    from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil

    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    words = tokenizer("<IMG_ATOM>", *marks)
    config = hf.Ovis2Config(
        vision_config=clip(
            hf.Ovis2VisionConfig, size=56, hidden_stride=2, vocab_size=64, num_visual_indicator_tokens=len(marks),
            initializer_range=0.2,
        ),
        text_config=text(hf.Qwen2Config), image_token_id=reserved(0), hidden_size=64,
        vocab_size=len(words), visual_indicator_token_ids=[reserved(1 + mark) for mark in range(len(marks))],
        tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    processor = hf.Ovis2Processor(
        Ovis2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4), words,
        image_seq_length=16,
    )  # fmt: skip
    model = build(hf.Ovis2ForConditionalGeneration, config, attention)
    with torch.no_grad():  # features are its means, which would be small
        model.model.visual_embeddings_table.weight.normal_()
    return Specimen(model, processor, sizes=SIZES, image_token_id=reserved(0))


def _perception_pictures(tile: int) -> Any:
    """In place of `PerceptionLMImageProcessor`, which needs torchvision: a thumbnail, and the tiles of the picture.

    Only pictures with equally many tiles fit into one call, here as there, where they are stacked: so two tiles each.
    """
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    class Pictures(SiglipImageProcessorPil):
        def preprocess(self, images: Any, return_tensors: Any = None, **options: Any) -> Any:
            flat = [picture for line in images for picture in (line if isinstance(line, list) else [line])]
            made = []
            for picture in flat:
                columns, rows = (2, 1) if picture.width > picture.height else (1, 2)
                canvas = picture.resize((columns * tile, rows * tile))
                corners = [(column * tile, row * tile) for row in range(rows) for column in range(columns)]
                tiles = [canvas.crop((x, y, x + tile, y + tile)) for x, y in corners]
                made.append(super().preprocess([picture.resize((tile, tile)), *tiles], return_tensors="pt"))
            return hf.BatchFeature({"pixel_values": torch.stack([each["pixel_values"] for each in made])})

    return Pictures(size={"height": tile, "width": tile})


def perception_lm(attention: str) -> Specimen:
    """Behind a stand-in for its Perception Encoder, which needs timm: a sequence behind a class token, as from it."""
    config = hf.PerceptionLMConfig(
        vision_config=stand_in(
            hf.TimmWrapperConfig, "sequence", patch=7, hidden_size=32, class_token=True, model_args={"embed_dim": 32}
        ),
        text_config=text(hf.LlamaConfig), image_token_id=IMAGE, video_token_id=VIDEO, projector_pooling_ratio=2,
        initializer_range=0.2,
    )  # fmt: skip
    processor = hf.PerceptionLMProcessor(
        no_video(), _perception_pictures(56), tokenizer(), patch_size=7, pooling_ratio=2
    )
    model = build(hf.PerceptionLMForConditionalGeneration, config, attention)
    return Specimen(model, processor, sizes=[(112, 56), (56, 112), (90, 50)])


class _GotOcr2Lists(hf.GotOcr2Processor):
    """`GotOcr2Processor` takes one list of pictures, and no text alone: here lists of lists, and both."""

    images_kwargs: ClassVar[dict[str, Any]] = {"crop_to_patches": True, "min_patches": 1, "max_patches": 4}
    num_image_tokens = 16

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        flat = [picture for line in images or () for picture in line]
        return super().__call__(flat, text, **options) if flat else self.tokenizer(text, **options)


def got_ocr2(attention: str) -> Specimen:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    config = hf.GotOcr2Config(
        vision_config=hf.GotOcr2VisionConfig(
            hidden_size=32, output_channels=16, num_hidden_layers=3, num_attention_heads=4, image_size=64,
            patch_size=4, window_size=7, global_attn_indexes=[2], mlp_dim=64, initializer_range=0.2,
        ),
        text_config=text(hf.Qwen2Config), image_token_index=reserved(0), image_seq_length=16,
        tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    processor = _GotOcr2Lists(GotOcr2ImageProcessorPil(size={"height": 64, "width": 64}), tokenizer("<imgpad>"))
    # the model as a whole refuses SDPA; not asked, its decoder has it nevertheless, which is how it is loaded
    model = build(hf.GotOcr2ForConditionalGeneration, config, None if attention == "sdpa" else attention)
    with torch.no_grad():
        for name, parameter in model.model.vision_tower.named_parameters():
            if "pos" in name:  # new, they are zero
                parameter.normal_(std=0.2)
    return Specimen(model, processor, "<img> <imgpad> </img>", sizes=SIZES, image_token_id=reserved(0))


def qianfan_ocr(attention: str) -> Specimen:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    config = hf.QianfanOCRConfig(
        vision_config=clip(
            hf.QianfanOCRVisionConfig, size=[56, 56], patch=[7, 7], layer_scale_init_value=1.0, initializer_range=0.2
        ),
        text_config=text(hf.Qwen3Config), image_token_id=VOCABULARY["<ctx>"], image_seq_length=16,
        initializer_range=0.2,
    )  # fmt: skip
    pictures = GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = hf.QianfanOCRProcessor(pictures, tokenizer(), image_seq_length=16)
    model = build(hf.QianfanOCRForConditionalGeneration, config, attention)
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embeddings.normal_(std=0.2)  # new, all places are one
    return Specimen(model, processor, sizes=SIZES, image_token_id=VOCABULARY["<ctx>"])
