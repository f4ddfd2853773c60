"""Every model type that is known by name: what it is, and why those that cannot be pruned cannot.

A type that is in neither table is tried by its structure: `prune` checks on the model in hand whether that works
(`adaptprune.hooks.selfcheck`).
"""

from __future__ import annotations

from typing import NamedTuple

#: The oldest tested release of transformers: most types are older.
FIRST = "5.16.1"


class Type(NamedTuple):
    """A tested model type: it has a specimen with its real processor (`adaptprune.testing.zoo`).

    Attributes
    ----------
    summary : str
    family : str
        Module and class in this package that knows its geometry.
    since : str
        The first release of transformers that its specimen is tested with. On an older one that has the type, too,
        `prune` checks the model in hand, as for types that are not tested.
    causal : bool
        Whether no token sees a later one (not so where a picture sees all of itself).
    """

    summary: str
    family: str = "generic:Generic"
    since: str = FIRST
    causal: bool = True


TYPES = {
    "llava": Type("LLaVA-1.5 and its relatives (CLIP, SigLIP), Pixtral 12B: one grid per image", "llava:Llava"),
    "llava_next": Type(
        "LLaVA-NeXT (1.6): a small view and unpadded tiles; newline tokens are always kept", "llava_next:LlavaNext"
    ),
    "llava_next_video": Type(
        "LLaVA-NeXT-Video: as LLaVA-NeXT, and one grid per frame", "llava_next_video:LlavaNextVideo"
    ),
    "llava_onevision": Type(
        "LLaVA-OneVision: tiles, several images, video frames; newline tokens are always kept",
        "llava_onevision:LlavaOnevision",
    ),
    "video_llava": Type(
        "Video-LLaVA: one grid per image and per frame; class tokens are always kept", "video_llava:VideoLlava"
    ),
    "vipllava": Type("VipLLaVA: one grid per image", since="5.24.0"),
    "qwen2_vl": Type("Qwen2-VL: any resolution, M-RoPE, video"),
    "qwen2_5_vl": Type("Qwen2.5-VL: as Qwen2-VL"),
    "qwen3_vl": Type("Qwen3-VL: prunes after the layers that deepstack adds features to"),
    "qwen3_vl_moe": Type("Qwen3-VL with experts"),
    "qwen3_5": Type("Qwen3.5: linear attention in most layers, which hold no keys", since="5.20.2"),
    "qwen3_5_moe": Type("Qwen3.5 and 3.6 with experts: as Qwen3.5", since="5.20.2"),
    "qwen2_5_omni_thinker": Type("the thinker of Qwen2.5-Omni: audio tokens stay", since="5.19.0"),
    "qwen3_omni_moe_thinker": Type("the thinker of Qwen3-Omni: deepstack; audio tokens stay", since="5.19.0"),
    "gemma3": Type("Gemma 3: sliding-window layers, images see all of themselves", causal=False),
    "gemma3n": Type("Gemma 3n: layers that share keys, streams of states", causal=False, since="5.24.0"),
    "gemma4": Type("Gemma 4: layers that share keys, images of any size", causal=False, since="5.24.0"),
    "gemma4_unified": Type("Gemma 4 without an encoder: images of any size", causal=False, since="5.24.0"),
    "paligemma": Type("PaliGemma 1 and 2: prefix attention", causal=False),
    "kimi_k25": Type("Kimi K2.5: latent attention, experts; frames of a video are pooled", since="5.24.0"),
    "internvl": Type("InternVL 3: tiles and thumbnail; video as a sequence of images", "tiles:Adjacent"),
    "qianfan_ocr": Type("Qianfan-OCR: tiles and thumbnail", "tiles:Adjacent"),
    "got_ocr2": Type("GOT-OCR 2: tiles and thumbnail", "tiles:Adjacent", since="5.24.0"),
    "perception_lm": Type("Perception LM: thumbnail and tiles", "tiles:Adjacent", since="5.19.0"),
    "idefics2": Type("Idefics2: latents without a place in the picture, in one row", "tiles:Latents"),
    "idefics3": Type("Idefics3: tiles and the whole image", "tiles:Idefics3"),
    "smolvlm": Type("SmolVLM: as Idefics3; video as a sequence of images", "tiles:Idefics3"),
    "granite_docling": Type("Granite Docling: tiles and the whole image; deepstack", "tiles:GraniteDocling", "5.24.0"),
    "granite4_vision": Type(
        "Granite 4 Vision: as LLaVA-NeXT; prunes after the layers that features are added to",
        "llava_next:Granite4",
        since="5.20.2",
    ),
    "cohere2_vision": Type(
        "Command A Vision: tiles and thumbnail, sliding-window layers", "tiles:Separated", since="5.19.0"
    ),
    "aya_vision": Type("Aya Vision: tiles and thumbnail, sliding-window layers", "tiles:Separated"),
    "cohere_compass": Type("Cohere Compass: deepstack, sliding-window layers"),
    "ovis2": Type("Ovis2: thumbnail and tiles; indicator tokens stay", "tiles:Separated"),
    "lfm2_vl": Type("LFM2-VL: convolutions in most layers, tiles of any size", "tiles:Separated", since="5.24.0"),
    "lfm3_vl": Type("LFM3-VL: convolutions and sliding windows", since="5.24.0"),
    "minicpmv4_6": Type("MiniCPM-V 4.6: Qwen3.5's decoder; overview and slices", "tiles:MarkedFirst", since="5.19.0"),
    "minicpmv4_7": Type("MiniCPM-V 4.7: as 4.6, with M-RoPE", "tiles:MarkedFirst", "5.19.0"),
    "glm4v": Type("GLM-4.1V: any resolution, M-RoPE", since="5.19.0"),
    "glm46v": Type("GLM-4.6V: as GLM-4.1V", since="5.19.0"),
    "glm4v_moe": Type("GLM-4.5V: as GLM-4.1V, with experts", since="5.19.0"),
    "glm_ocr": Type("GLM-OCR: any resolution, M-RoPE", since="5.19.0"),
    "paddleocr_vl": Type("PaddleOCR-VL: any resolution, M-RoPE", since="5.24.0"),
    "ernie4_5_vl_moe": Type("ERNIE 4.5 VL: experts of their own for visual tokens"),
    "cosmos3_edge": Type(
        "Cosmos 3 Edge: any resolution, M-RoPE; its processor has to be told return_mm_token_type_ids=True",
        since="5.24.0",
    ),
    "exaone4_5": Type("EXAONE 4.5: any resolution, sliding-window layers", since="5.20.2"),
    "hyperclovax_vision_v2": Type("HyperCLOVA X SEED Vision: any resolution", since="5.19.0"),
    "video_llama_3": Type("VideoLLaMA 3: any resolution, merged by a factor of its own per picture"),
    "nemotron_h_omni": Type("Nemotron 3 Nano Omni: state-space layers, which hold no keys", since="5.24.0"),
    "llama4": Type("Llama 4: chunked attention, tiles and the whole image", "llama4:Llama4", since="5.24.0"),
    "molmo2": Type("Molmo 2: a small view and the picture", "rows:Molmo2", causal=False, since="5.24.0"),
    "step3p7": Type("Step 3.7: crops and the whole image, sliding-window layers", "rows:Step", since="5.24.0"),
    "hunyuan_vl": Type("HunyuanOCR: newline tokens are always kept", "rows:HunYuan", since="5.20.2"),
    "mistral3": Type("Mistral Small 3.x (Pixtral tower): any resolution"),
    "lighton_ocr": Type("LightOnOCR: any resolution"),
    "fast_vlm": Type("FastVLM: one grid per image"),
    "deepseek_vl": Type("DeepSeek-VL: one grid per image"),
    "janus": Type("Janus Pro: one grid per image"),
    "aria": Type("Aria: queries without a place in the picture, in one row", since="5.24.0"),
}

#: What the other types are that pass the check on a tiny model.
CHECKED = {
    "apertus1p5": "Apertus 1.5",
    "cosmos3_omni": "Cosmos 3 Omni",
    "deepseek_ocr2": "DeepSeek-OCR 2",
    "deepseek_vl_hybrid": "DeepSeek-VL with two towers",
    "dots3_note": "dots 3 note",
    "emu3": "Emu3",
    "fuyu": "Fuyu",
    "glmga": "GLM-GA",
    "hy_v4_vl": "Hunyuan V4 VL",
    "minicpm_ocr": "MiniCPM-OCR",
    "mistral_large4": "Mistral Large 4",
    "muse_glimmer": "Muse Glimmer",
    "muse_spark": "Muse Spark",
    "pp_chart2table": "PP-Chart2Table",
    "qwen4_exp": "Qwen4, experimental",
}

_CROSS = (
    "its pictures are read by cross-attention and take no place in the prompt: nothing can leave it. Use fewer or "
    "smaller pictures"
)
_PAIR = "an encoder and a decoder: pictures are no tokens of the decoder. Use a decoder-only model of {known}"
_FRONT = (
    "its pictures are put in front of the text with masks of its own, outside of what pruning sees. Use a model that "
    "has placeholders, such as those of {known}"
)
_QUERIES = (
    "its generate() hands embeddings to a model inside it, where pictures cannot be told from text; each is no more "
    "than 32 tokens already. Use it unpruned"
)
_SPARSE = (
    "its sparse attention ranks cached keys by places that pruning moves, and no independent check of that exists yet: "
    "use it unpruned"
)
_LOOP = (
    "its decoder carries a state per token between layers, outside of them, where it cannot be cut: use it unpruned, "
    "or ask for smaller pictures"
)

#: Why a model type cannot be pruned.
REFUSED = {
    **dict.fromkeys(("mllama", "idefics", "evolla"), _CROSS),
    **dict.fromkeys(
        ("blip", "florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"),
        _PAIR,
    ),
    **dict.fromkeys(("git", "kosmos-2", "kosmos-2.5"), _FRONT),
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), _QUERIES),
    **dict.fromkeys(("minimax_m3_vl", "glm5_next"), _SPARSE),
    **dict.fromkeys(("inkling2", "inkling2_loop", "inkling_mm_model"), _LOOP),
    "unlimited_ocr": "its KV cache is of a kind of its own, which pins the prompt: use it unpruned",
    "diffusion_gemma": "its answer is denoised in blocks by another decoder, which reads a cache of the prompt: use it "
    "unpruned",
    "pi0": "it answers with actions of a robot, by an expert that attends beside the language model: use it unpruned",
    "mistral4": "by this type it reads text alone: there is nothing to prune",
    "shieldgemma2": "it is a classifier, which reads one prompt and generates nothing: use it unpruned",
    "chameleon": "its base encodes pictures and runs the layers itself, so that it is not known where its prompt "
    "begins: use it unpruned",
}
