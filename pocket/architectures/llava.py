"""LLaVA-1.5: a CLIP tower that sees every picture at one size, and a decoder behind a projector.

Contract: see `Architecture`. The tower's last layer only feeds the class token, as in LLaVA-1.5.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from adaptprune.tabletop.vocabulary import GRID, IMAGE_SIZE, PATCH_SIZE
from pocket.architectures import llava_start
from pocket.architectures.base import Architecture
from pocket.pixels import IMAGE_MEAN, IMAGE_STD
from pocket.tokens import make_tokenizer, vocabulary

CHAT_TEMPLATE = """{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{ 'ASSISTANT: ' }}{%- else -%}{{ 'USER: ' }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ '</s>' }}{%- else -%}{{ ' ' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


class Llava(Architecture):
    """``LlavaForConditionalGeneration`` with a decoder in Qwen 3's format."""

    name = "llava"
    specials = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
    pad, eos = "<pad>", "</s>"
    before, suffix = "<s> USER:", "ASSISTANT:"
    width = 160
    span = GRID * GRID
    knows_place = True
    normalised = True

    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        return make_tokenizer(self.specials, self.pad, self.eos, "<s>", {"image_token": "<image>"})

    def make_processor(self) -> LlavaProcessor:
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            image_mean=list(IMAGE_MEAN),
            image_std=list(IMAGE_STD),
        )
        return LlavaProcessor(
            image_processor=image_processor,
            tokenizer=self.make_tokenizer(),
            patch_size=PATCH_SIZE,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
        )

    def vision_config(self) -> CLIPVisionConfig:
        """CLIP tower, 4 layers of 160."""
        return CLIPVisionConfig(
            hidden_size=self.width,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=8,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=160,
        )

    def text_config(self) -> Qwen3Config:
        """Decoder, 6 layers of 160, with normalised queries and keys (they make small models far easier to train)."""
        return Qwen3Config(
            vocab_size=len(vocabulary(self.specials)),
            hidden_size=160,
            intermediate_size=432,
            num_hidden_layers=6,
            num_attention_heads=5,
            num_key_value_heads=5,
            head_dim=32,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            **self._framing(),
        )

    def _framing(self) -> dict[str, int]:
        names = {"pad_token_id": self.pad, "bos_token_id": "<s>", "eos_token_id": self.eos}
        return {name: self.specials.index(token) for name, token in names.items()}

    def make_model(self) -> PreTrainedModel:
        config = LlavaConfig(
            vision_config=self.vision_config(),
            text_config=self.text_config(),
            image_token_index=self.specials.index("<image>"),
            image_seq_length=self.span,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=True,
            **self._framing(),
        )
        model = LlavaForConditionalGeneration(config)
        model.generation_config.max_new_tokens = 24
        model.generation_config.do_sample = False
        return model.to(torch.float32)

    def make_tower(self) -> CLIPVisionModel:
        return CLIPVisionModel(self.vision_config())

    def start_tower(self, tower: Any) -> None:
        llava_start.look_at_neighbours(tower)
        llava_start.whiten(tower)

    def add_ramps(self, tower: Any) -> None:
        llava_start.add_ramps(tower)

    def put_tower(self, model: Any, tower: nn.Module) -> None:
        model.model.vision_tower = tower

    def features(self, tower: Any, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        parts = tower.embeddings
        patches = parts.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = parts.class_embedding.expand(len(pixels), 1, -1)
        positions = F.pad(rows + 1, (1, 0))  # row 0 is the class token's
        hidden = tower.pre_layrnorm(torch.cat([first, patches], dim=1) + parts.position_embedding(positions))
        *layers, last = tower.encoder.layers
        for layer in layers:
            hidden = layer(hidden, None)
        # Only the class token is read after the last layer, so only its query is computed.
        normed, attention = last.layer_norm1(hidden), last.self_attn
        heads = (attention.num_heads, attention.head_dim)
        query = attention.q_proj(normed[:, :1]).unflatten(-1, heads).transpose(1, 2)
        key, value = (
            proj(normed).unflatten(-1, heads).transpose(1, 2) for proj in (attention.k_proj, attention.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        whole = hidden[:, :1] + attention.out_proj(mixed)
        whole = whole + last.mlp(last.layer_norm2(whole))
        return hidden[:, 1:], tower.post_layernorm(whole[:, 0])

    def project(self, model: Any, features: Tensor) -> Tensor:
        made: Tensor = model.model.multi_modal_projector(features)
        return made

    def projector(self, model: Any) -> nn.Module:
        module: nn.Module = model.model.multi_modal_projector
        return module

    def matrices(self, model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return [p for p in model.model.language_model.layers.parameters() if p.ndim == 2], []

    def rate_of(self, name: str, parameter: Tensor) -> str | None:
        if "patch_embedding" in name:
            return "first"
        if "q_proj" in name or "k_proj" in name or "position_embedding" in name:
            return "looking"
        return "matrix" if "encoder" in name and parameter.ndim == 2 else "other"

    def positions(self, start: int, keep: Tensor) -> Tensor:
        return (start + keep)[None]
