"""How a question becomes a prompt and a picture becomes pixels: the model's own way, or LLaVA-1.5's evaluation.

LLaVA-1.5 was evaluated with Vicuna's system sentence in front, and with pictures padded to a square in the processor's
mean colour; converted checkpoints come with neither (their processors cut the sides off).
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from adaptprune.engines.transformers import chat_text
from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams import parts, processors
from adaptprune.registry import did_you_mean

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
MODEL, LLAVA, AUTO = "model", "llava-1.5", "auto"
PROTOCOLS = (AUTO, LLAVA, MODEL)
VICUNA_VOCABULARIES = (
    32000,
    32064,
)  # the original checkpoints', and the converted ones' with special tokens and padding


def pick(name: str, config: Any) -> str:
    """`name`, or for "auto" what suits a model: LLaVA-1.5's protocol for LLaVA on Vicuna, else the model's own."""
    if name not in PROTOCOLS:
        raise AdaptPruneError(f"unknown protocol {name!r}.{did_you_mean(name, PROTOCOLS)}")
    if name != AUTO:
        return name
    text = parts.text_config(config)
    vicuna = text.model_type == "llama" and text.vocab_size in VICUNA_VOCABULARIES
    return LLAVA if config.model_type == "llava" and vicuna else MODEL


def prompt_text(protocol: str, processor: Any, prompt: str, images: int) -> str:
    """The prompt of one user turn, with a placeholder for each image in front of the question."""
    text = chat_text(processor, prompt, images)  # checks the prompt, too
    if protocol == MODEL:
        return text
    token = processors.image_token(processor)
    return f"{SYSTEM} USER: " + f"{token}\n" * images + f"{prompt} ASSISTANT:"


def square(protocol: str, processor: Any, image: Image.Image) -> Image.Image:
    """The picture in the middle of a square of the mean colour, if the protocol wants that."""
    if protocol == MODEL or image.width == image.height:
        return image
    colour = tuple(int(255 * mean) for mean in processors.colour_means(processor))
    side = max(image.size)
    padded = Image.new("RGB", (side, side), colour)
    padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return padded
