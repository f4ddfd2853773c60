"""IBM's models: features that are added at the entry of several layers."""

from __future__ import annotations

import transformers as hf

from adaptprune.testing.specimen import IMAGE, PAD, Specimen, build, clip, resize, text, tokenizer

PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def granite4_vision(attention: str) -> Specimen:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    config = hf.Granite4VisionConfig(
        # the projectors have one head for every 64 channels of the tower
        vision_config=clip(hf.SiglipVisionConfig, hidden_size=64),
        text_config=text(hf.Granite4VisionConfig().text_config.__class__, attention_multiplier=0.25),
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "cross_attention_frequency": 1,
            "max_position_embeddings": 64,
            "use_qformer_text_input": False,
            "vocab_size": 8,
            "initializer_range": 0.2,
        },
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=PINPOINTS,
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0]],
        spatial_target_layers=[1, 2],
    )
    processor = hf.Granite4VisionProcessor(
        LlavaNextImageProcessorPil(**resize(28), image_grid_pinpoints=PINPOINTS),
        tokenizer(),
        patch_size=7,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
    )
    model = build(hf.Granite4VisionForConditionalGeneration, config, attention)
    return Specimen(model, processor, sizes=[(60, 31), (33, 90), (50, 50)])


def granite_docling(attention: str) -> Specimen:
    from transformers.models.granite_docling.image_processing_pil_granite_docling import GraniteDoclingImageProcessorPil

    config = hf.GraniteDoclingConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "out_hidden_size": 64,
            "scale_factor": 2,
            "deepstack_visual_indexes": [0, 1, 2],
            "initializer_range": 0.2,
        },
        text_config=text(
            hf.GraniteDoclingConfig().text_config.__class__,
            # not one, so that they act, but so that layers differ visibly
            embedding_multiplier=2.0,
            residual_multiplier=0.8,
            attention_multiplier=0.25,
            tie_word_embeddings=False,  # tied, it would say its last word again and again
        ),
        image_token_id=IMAGE,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    pictures = GraniteDoclingImageProcessorPil(size={"height": 32, "width": 32}, max_patches=4)
    processor = hf.GraniteDoclingProcessor(pictures, tokenizer(), image_seq_len=4)
    model = build(hf.GraniteDoclingForConditionalGeneration, config, attention)
    return Specimen(model, processor, sizes=[(64, 60), (30, 30), (32, 90)])
