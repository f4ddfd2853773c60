"""Tokenizer, picture settings and conversation of the original LLaVA checkpoints, as a stock processor."""

from __future__ import annotations

from typing import Any

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams.processors import picture_class
from adaptprune.models.checkpoint import Checkpoint
from adaptprune.models.original import Layout
from adaptprune.prompts.conversations import chat_template

IMAGE = "<image>"


def conversation(layout: Layout, *names: str) -> str:
    """Which conversation a checkpoint was trained on, from its language model and from what it is called.

    As their run_llava.py has it, except that what it cannot tell is the current Vicuna format, not that of 2023's
    first release.
    """
    called = " ".join([*names, str(layout.text.get("_name_or_path", ""))]).lower()
    if layout.mistral:
        return "mistral_instruct"
    if "llama-2" in called:
        return "llama_2"
    if "34b" in called or "yi-" in called:
        return "chatml_direct"
    return "vicuna_v1"


def read_tokenizer(checkpoint: Checkpoint, layout: Layout, rows: int) -> Any:
    """The language model's tokenizer with LLaVA's tokens, ``<image>`` and, if it has none, a padding token.

    Parameters
    ----------
    rows : int
        Rows of the checkpoint's embeddings: tokens that are read need one.
    """
    from transformers import AutoTokenizer, LlamaTokenizer

    settings = checkpoint.need("tokenizer_config.json")
    fast = checkpoint.file("tokenizer.json")
    if fast is None and checkpoint.file("tokenizer.model") is None:
        raise AdaptPruneError(f"{checkpoint.name!r} has neither tokenizer.json nor tokenizer.model: fetch it too.")
    if str(settings.get("tokenizer_class", "LlamaTokenizer")).startswith("Llama"):
        # Legacy: what follows a special token starts like a text of its own. So does the text after an image in the
        # original, which tokenizes the parts around its images one by one.
        bos = settings.get("add_bos_token", True)
        tokenizer = LlamaTokenizer.from_pretrained(checkpoint.name, legacy=True, add_bos_token=bos, **checkpoint.where)
    else:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.name, **checkpoint.where)
    if layout.patch_token:
        tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
    if layout.start_end:
        tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
        if len(tokenizer) > rows:
            raise AdaptPruneError(
                f"mm_use_im_start_end is set, and the {rows} embeddings have no rows for <im_start> and <im_end>: the "
                "checkpoint is not complete."
            )
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def check_sentencepiece(checkpoint: Checkpoint) -> None:
    """Raise if the tokenizer cannot be read here for want of a package; called before gigabytes of weights are read."""
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    if is_sentencepiece_available() and is_protobuf_available():
        return
    if checkpoint.file("tokenizer.json") is None and checkpoint.file("tokenizer.model") is not None:
        raise AdaptPruneError("its tokenizer.model needs sentencepiece and protobuf: pip install 'adaptprune[llava]'.")


def make_processor(layout: Layout, tokenizer: Any, config: Any, pictures: dict[str, Any], template: str) -> Any:
    """The stock processor of the stock model.

    Parameters
    ----------
    config
        The stock model's config.
    pictures : dict
        The tower's preprocessor_config.json.
    template : str
        A key of `CONVERSATIONS`.
    """
    import transformers

    settings = {key: value for key, value in pictures.items() if key not in ("image_processor_type", "processor_class")}
    settings.pop("feature_extractor_type", None)
    kind = "Llava" if layout.pinpoints is None else "LlavaNext"
    if layout.pinpoints is None:
        settings["do_pad"] = layout.pad
    else:
        settings["image_grid_pinpoints"] = config.image_grid_pinpoints
    images = picture_class(kind)(**settings)
    shown = f"<im_start>{IMAGE}<im_end>" if layout.start_end else IMAGE
    return getattr(transformers, f"{kind}Processor")(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=chat_template(template, shown),
    )
