"""Models that cut pictures into square tiles."""

from __future__ import annotations

import transformers as hf

from adaptprune.testing.specimen import IMAGE, PAD, VOCABULARY, Specimen, build, clip, no_video, text, tokenizer


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
