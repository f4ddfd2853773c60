"""Models for which every picture is one square."""

from __future__ import annotations

import transformers as hf

from adaptprune.testing.specimen import IMAGE, Specimen, build, clip, llava_prompts, text, tokenizer
from adaptprune.testing.towers import stand_in


def vipllava(attention: str) -> Specimen:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = hf.VipLlavaConfig(
        vision_config=clip(), text_config=text(hf.LlamaConfig), image_token_index=IMAGE,
        vision_feature_layer=[-2, -3, 1], image_seq_length=16, initializer_range=0.2,
    )  # fmt: skip
    model = build(hf.VipLlavaForConditionalGeneration, config, attention)
    return Specimen(model, llava_prompts(CLIPImageProcessorPil))


def fast_vlm(attention: str) -> Specimen:
    """Behind a stand-in for its FastViT, which needs timm: features come as a picture, as from the real one."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = hf.FastVlmConfig(
        vision_config=stand_in(hf.TimmWrapperConfig, "image", patch=7, hidden_size=32),
        text_config=text(hf.Qwen2Config), image_token_index=IMAGE, image_seq_length=16, initializer_range=0.2,
    )  # fmt: skip
    model = build(hf.FastVlmForConditionalGeneration, config, attention)
    return Specimen(model, llava_prompts(CLIPImageProcessorPil, "full"))


def deepseek_vl(attention: str) -> Specimen:
    from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil

    config = hf.DeepseekVLConfig(
        vision_config=clip(hf.SiglipVisionConfig), text_config=text(hf.LlamaConfig), image_token_id=IMAGE,
        tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    pictures = DeepseekVLImageProcessorPil(size={"height": 28, "width": 28}, min_size=7)
    processor = hf.DeepseekVLProcessor(pictures, tokenizer(), num_image_tokens=16)
    return Specimen(build(hf.DeepseekVLForConditionalGeneration, config, attention), processor)


def janus(attention: str) -> Specimen:
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    config = hf.JanusConfig(
        vision_config=clip(
            hf.JanusVisionConfig, mlp_ratio=2.0, projection_dim=64, num_image_tokens=16, initializer_range=0.2
        ),
        vq_config=hf.JanusVQVAEConfig(  # draws pictures, which is not tested
            num_embeddings=16, latent_channels=32, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1,
            projection_dim=64, image_token_embed_dim=64,
        ),
        text_config=text(hf.LlamaConfig), image_token_id=IMAGE, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    pictures = JanusImageProcessorPil(size={"height": 28, "width": 28}, min_size=7)
    processor = hf.JanusProcessor(pictures, tokenizer(), num_image_tokens=16)
    return Specimen(build(hf.JanusForConditionalGeneration, config, attention), processor)
