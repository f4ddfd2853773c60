"""What specimens are made of: a tokenizer, stand-ins, small configs, and the Specimen itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from adaptprune.hooks.seams.processors import admitted, video_stand_in

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
#: Places for tokens that a model's processor looks up by a name of its own: see `tokenizer`.
RESERVED = [f"<reserved_{number}>" for number in range(40)]
VOCABULARY = {
    token: number
    for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *SPECIAL.values(), *TILES, *WORDS, *RESERVED])
}
PAD, BOS, EOS = 0, 1, 2
IMAGE, VIDEO = VOCABULARY["<image>"], VOCABULARY["<video>"]


def tokenizer(*tokens: str, **names: str) -> Any:
    """Words apart, specials whole.

    Parameters
    ----------
    *tokens : str
        Special tokens of a model of its own, which take the places in RESERVED (`reserved` gives their ids).
    **names : str
        From attributes that processors read ("image_token") to tokens, in place of those in SPECIAL.
    """
    renamed = dict(zip(RESERVED, tokens, strict=False))
    inner = Tokenizer(
        models.WordLevel({renamed.get(token, token): number for token, number in VOCABULARY.items()}, unk_token="<unk>")
    )
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
    made.add_special_tokens({"additional_special_tokens": [*TILES, *tokens]}, replace_extra_special_tokens=False)
    return made


def reserved(number: int) -> int:
    """The id of the token that `tokenizer` was handed as number `number`."""
    return VOCABULARY[RESERVED[number]]


def no_video(**attributes: Any) -> Any:
    """Stands in for a video processor, which needs torchvision; `attributes` are those that a processor asks it for."""
    return admitted(video_stand_in(lambda: None, **{"merge_size": 2, **attributes}))


#: A conversation: every turn's words behind a word for its role.
CHAT = (
    "{%- for turn in messages -%}{{ ' w1 ' if turn.role == 'user' else ' w2 ' }}"
    "{%- for part in turn.content -%}{{ ' PICTURE ' if part.type == 'image' else ' ' + part.text + ' ' }}{%- endfor -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ ' w2 ' }}{%- endif -%}"
)


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

    def __post_init__(self) -> None:
        """Give its processor a conversation format, if it is one that takes any and has none."""
        if hasattr(self.processor, "apply_chat_template") and not self.processor.chat_template:
            self.processor.chat_template = CHAT.replace("PICTURE", self.placeholder)

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


def finish(model: Any) -> Any:
    model.generation_config.eos_token_id = None  # every test runs to its full length
    model.generation_config.pad_token_id = PAD
    # a random model may say a placeholder, which a later turn would take for a picture
    model.generation_config.suppress_tokens = [
        number for token, number in VOCABULARY.items() if token in {*SPECIAL.values(), *RESERVED}
    ]
    return model.eval()


def build(kind: Any, config: Any, attention: str | None, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return finish(kind._from_config(config, attn_implementation=attention, dtype=dtype))


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


def clip(kind: Any = hf.CLIPVisionConfig, size: Any = 28, patch: Any = 7, **options: Any) -> Any:
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


def resize(size: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}


def llava_prompts(pictures: Any, strategy: str = "default") -> Any:
    """LLaVA's processor, for pictures of 28 pixels in patches of 7, behind a class token that "default" cuts off."""
    return hf.LlavaProcessor(
        pictures(**resize(28)), tokenizer(), patch_size=7, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(strategy == "default"),
    )  # fmt: skip


def wake_routers(model: Any) -> None:
    """Random values for the corrections of expert routers, which are zero in a new model."""
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.2)


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
