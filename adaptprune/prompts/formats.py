"""How a conversation is written out and a picture prepared: the model's own way, or LLaVA-1.5's evaluation.

LLaVA-1.5 was evaluated with Vicuna's system sentence in front, and with pictures padded to a square in the processor's
mean colour; converted checkpoints come with neither (their processors cut the sides off).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams import parts, processors
from adaptprune.registry import did_you_mean

MODEL, LLAVA, AUTO = "model", "llava-1.5", "auto"
FORMATS = (AUTO, LLAVA, MODEL)
#: Vocabularies of the original checkpoints, and of the converted ones with special tokens and padding.
VICUNA_VOCABULARIES = (32000, 32064)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


@dataclass(frozen=True)
class Format:
    """How prompts are made.

    Attributes
    ----------
    template : str or None
        A Jinja template in place of the processor's own.
    square : bool
        Pictures are put in the middle of a square of the mean colour.
    """

    name: str
    template: str | None = None
    square: bool = False

    def picture(self, processor: Any, image: Image.Image) -> Image.Image:
        """The picture that the processor is given."""
        if not self.square or image.width == image.height:
            return image
        colour = tuple(int(255 * mean) for mean in processors.colour_means(processor))
        side = max(image.size)
        padded = Image.new("RGB", (side, side), colour)
        padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return padded


def plain_template(image: str, system: str = "") -> str:
    """LLaVA-1.5's conversation, which its base checkpoints do not bring along; `image` stands for a picture."""
    return (
        f"{{%- set image = {image + chr(10)!r} -%}}"
        "{%- macro show(content) -%}{%- for part in content -%}"
        "{%- if part.type == 'image' -%}{{ image }}{%- else -%}{{ part.text }}{%- endif -%}"
        "{%- endfor -%}{%- endmacro -%}"
        f"{{{{ {system!r} }}}}"
        "{%- for turn in messages -%}{%- set said = show(turn.content) -%}"
        "{%- if turn.role == 'user' -%}{{ 'USER: ' + said + ' ' }}"
        "{%- elif turn.role == 'assistant' -%}{{ 'ASSISTANT: ' + said + '</s>' }}"
        "{%- else -%}{{ said + ' ' }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
    )


def pick(name: str, config: Any) -> str:
    """`name`, or for "auto" what suits a model: LLaVA-1.5's for LLaVA on Vicuna, else the model's own.

    Raises
    ------
    AdaptPruneError
        There is no such format.
    """
    if name not in FORMATS:
        raise AdaptPruneError(f"unknown protocol {name!r}.{did_you_mean(name, FORMATS)}")
    if name != AUTO:
        return name
    text = parts.text_config(config)
    vicuna = text.model_type == "llama" and text.vocab_size in VICUNA_VOCABULARIES
    return LLAVA if config.model_type == "llava" and vicuna else MODEL


def format_of(name: str, processor: Any) -> Format:
    """The format of a name that `pick` gave."""
    token = processors.image_token(processor)
    if name == LLAVA:
        return Format(LLAVA, plain_template(token, SYSTEM), square=True)
    return Format(MODEL, None if processors.has_template(processor) else plain_template(token))
