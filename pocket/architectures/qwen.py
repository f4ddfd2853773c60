"""Qwen2.5-VL: a tower with window attention that sees pictures as large as they are, and a decoder with M-RoPE.

Contract: see `Architecture`. Patches of 7 pixels, four of which make one visual token of 14 x 14; the tower's features
are the four patches of a token, side by side, before they are merged. Two of its four layers see the whole picture.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2_5_VLTextConfig,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    apply_rotary_pos_emb_vision,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from adaptprune.tabletop.vocabulary import GRID, IMAGE_SIZE
from pocket.architectures.base import Architecture
from pocket.pixels import IMAGE_MEAN, IMAGE_STD, whitening
from pocket.precision import whole
from pocket.tokens import make_tokenizer, vocabulary

PATCH, MERGE, WINDOW = 7, 2, 84  # pixels, patches along a side of a visual token, pixels
SMALLEST, LARGEST = 56 * 56, IMAGE_SIZE * IMAGE_SIZE  # area of pictures, beyond which they are scaled
TOWER, HEADS, TEXT = 128, 8, 192
VIDEO = {
    "video_processor_type": "Qwen2VLVideoProcessor",
    "patch_size": PATCH,
    "merge_size": MERGE,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": SMALLEST, "longest_edge": LARGEST},
}
LOCAL = 3.0  # how much each frequency adds to the score of the patch that a head looks at, at the start
# where the heads of each layer look at first, as (row, column) in patches; None: nowhere
OFFSETS: tuple[tuple[tuple[int, int] | None, ...], ...] = (
    ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
    ((-3, 0), (3, 0), (0, -3), (0, 3), (-2, -2), (-2, 2), (2, -2), (2, 2)),
    ((-4, 0), (4, 0), (0, -4), (0, 4), (-3, -3), (-3, 3), (3, -3), (3, 3)),
    ((-6, 0), (6, 0), (0, -6), (0, 6), None, None, None, None),
)

CHAT_TEMPLATE = """{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


class _Fused(nn.Module):
    """Queries and keys apart from values while training: they are taught at different rates, but are one matrix."""

    def forward(self, looking: Tensor, value: Tensor) -> Tensor:
        return torch.cat([looking, value])

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        looking = 2 * len(weight) // 3
        return weight[:looking], weight[looking:]


class Qwen(Architecture):
    """``Qwen2_5_VLForConditionalGeneration``."""

    name = "qwen"
    specials = (
        "<|endoftext|>",
        "<unk>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    )
    pad, eos = "<|endoftext|>", "<|im_end|>"
    before, after, between = "<|im_start|>user\n<|vision_start|>", "<|vision_end|>", "<|vision_end|><|vision_start|>"
    suffix = "<|im_end|>\n<|im_start|>assistant\n"
    width = TOWER * MERGE**2
    span = GRID
    knows_place = False
    normalised = False

    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        frames = ("im_start", "vision_start", "vision_end")
        named = {f"{name}_token": f"<|{name}|>" for name in frames}
        pictures = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
        return make_tokenizer(self.specials, self.pad, self.eos, None, {**pictures, **named})

    def make_processor(self) -> Any:
        from adaptprune.hooks.seams.processors import admitted, has_torchvision, video_stand_in

        def refuse() -> None:
            raise ValueError("the pocket models were never shown a video")

        if has_torchvision():
            from transformers import Qwen2VLVideoProcessor

            video: Any = Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=MERGE)
        else:
            video = admitted(video_stand_in(refuse, patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2))
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessorPil(
                patch_size=PATCH,
                merge_size=MERGE,
                size={"shortest_edge": SMALLEST, "longest_edge": LARGEST},
                image_mean=list(IMAGE_MEAN),
                image_std=list(IMAGE_STD),
            ),
            tokenizer=self.make_tokenizer(),
            video_processor=video,
            chat_template=CHAT_TEMPLATE,
        )

    def vision_config(self) -> Qwen2_5_VLVisionConfig:
        """Tower of 4 layers."""
        return Qwen2_5_VLVisionConfig(
            depth=len(OFFSETS),
            hidden_size=TOWER,
            intermediate_size=2 * TOWER,
            num_heads=HEADS,
            patch_size=PATCH,
            spatial_merge_size=MERGE,
            window_size=WINDOW,
            out_hidden_size=TEXT,
            fullatt_block_indexes=[1, 3],
            # as low as this, the first frequencies tell neighbours apart and none is wasted on larger pictures
            rope_parameters={"rope_type": "axial", "rope_theta": 30.0},
        )

    def text_config(self) -> Qwen2_5_VLTextConfig:
        """Decoder of 6 layers; rows and columns have high and low frequencies both, not one of them only low ones."""
        return Qwen2_5_VLTextConfig(
            vocab_size=len(vocabulary(self.specials)),
            hidden_size=TEXT,
            intermediate_size=448,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=3,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 2000.0, "mrope_section": [*[1] * 14, 2]},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=self.specials.index(self.eos),
            pad_token_id=self.specials.index(self.pad),
        )

    def make_model(self) -> PreTrainedModel:
        ids = {name: self.specials.index(f"<|{name}|>") for name in ("vision_start", "vision_end")}
        config = Qwen2_5_VLConfig(
            vision_config=self.vision_config().to_dict(),
            text_config=self.text_config().to_dict(),
            image_token_id=self.specials.index("<|image_pad|>"),
            video_token_id=self.specials.index("<|video_pad|>"),
            **{f"{name}_token_id": number for name, number in ids.items()},
            tie_word_embeddings=True,
        )
        model = Qwen2_5_VLForConditionalGeneration(config)
        model.generation_config.max_new_tokens = 24
        model.generation_config.do_sample = False
        model.generation_config.eos_token_id = self.specials.index(self.eos)
        model.generation_config.pad_token_id = self.specials.index(self.pad)
        return model.to(torch.float32)

    def make_tower(self) -> Qwen2_5_VisionTransformerPretrainedModel:
        tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(self.vision_config())
        for block in tower.blocks:
            parametrize.register_parametrization(block.attn.qkv, "weight", _Fused())
        return tower

    @torch.no_grad()
    def start_tower(self, tower: Any) -> None:
        """Whitened pixels, and heads whose biases make them look at a neighbour: with rotary positions, two vectors
        that are the same for every patch, one of them turned, meet at one offset."""
        rows, _ = whitening(PATCH, TOWER, 0.5, centred=False)
        both = rows.view(TOWER, 3, 1, PATCH, PATCH) / tower.config.temporal_patch_size
        tower.patch_embed.proj.weight.copy_(both.expand_as(tower.patch_embed.proj.weight))
        size = TOWER // HEADS
        frequencies = tower.rotary_pos_emb.inv_freq
        strength = math.sqrt(LOCAL * math.sqrt(size))
        for block, offsets in zip(tower.blocks, OFFSETS, strict=True):
            attention, mlp = block.attn, block.mlp
            split = attention.qkv.parametrizations.weight
            split.original0.normal_(std=0.01)
            bias = attention.qkv.bias.view(3, HEADS, size).zero_()
            for head, offset in enumerate(offsets):
                if offset is not None:
                    turn = torch.cat([offset[0] * frequencies, offset[1] * frequencies])
                    bias[0, head] = strength * torch.cat([turn.cos(), turn.sin()])
                    bias[1, head, : size // 2] = strength
            split.original1.normal_(std=TOWER**-0.5)
            for matrix in (attention.proj.weight, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight):
                matrix.normal_(std=0.5 * matrix.shape[1] ** -0.5)
        for layer in (tower.merger.mlp[0], tower.merger.mlp[2]):
            layer.weight.normal_(std=layer.weight.shape[1] ** -0.5)

    def put_tower(self, model: Any, tower: nn.Module) -> None:
        model.model.visual = tower

    def features(self, tower: Any, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        batch, _, height, width = pixels.shape
        grid = torch.tensor([[1, height // PATCH, width // PATCH]])
        order, ends = get_vision_window_index(grid, MERGE, WINDOW, PATCH)
        windows = len(ends) - 1
        if len(set(ends.diff().tolist())) != 1:
            raise ValueError(f"training pictures must be whole windows of {WINDOW} pixels, got {height} x {width}")
        parts = (height // PATCH // MERGE, MERGE, PATCH, width // PATCH // MERGE, MERGE, PATCH)
        cut = pixels.reshape(batch, 3, *parts).permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, len(order), MERGE**2, -1)
        order = order.to(pixels.device)
        kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)  # a still picture is the same frame twice
        hidden = F.linear(cut[:, order].flatten(1, 2), kernel)
        places = get_vision_position_ids(grid, MERGE).to(pixels.device)
        turns = [one.unflatten(0, (-1, MERGE**2))[order].flatten(0, 1) for one in tower.rotary_pos_emb(hidden, places)]
        for number, block in enumerate(tower.blocks):
            groups = 1 if number in tower.fullatt_block_indexes else windows
            grouped = hidden.reshape(batch * groups, -1, TOWER)
            cos, sin = (one.view(groups, -1, one.shape[-1]).repeat(batch, 1, 1) for one in turns)
            grouped = grouped + _attend(block.attn, block.norm1(grouped), cos, sin)
            hidden = (grouped + block.mlp(block.norm2(grouped))).view(batch, -1, TOWER)
        return hidden.view(batch, len(order), -1)[:, order.argsort()], None

    def project(self, model: Any, features: Tensor) -> Tensor:
        made: Tensor = model.model.visual.merger(features.reshape(-1, TOWER))
        return made.view(*features.shape[:2], -1)

    def projector(self, model: Any) -> nn.Module:
        module: nn.Module = model.model.visual.merger
        return module

    def matrices(self, model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        slow, fast = [], [p for p in self.projector(model).parameters() if p.ndim == 2]
        for name, parameter in model.model.language_model.layers.named_parameters():
            if parameter.ndim == 2:
                (slow if "q_proj" in name or "k_proj" in name else fast).append(parameter)
        return fast, slow

    def rate_of(self, name: str, parameter: Tensor) -> str | None:
        if "merger" in name:
            return None
        if "patch_embed" in name:
            return "first"
        if name.endswith(("qkv.bias", "original0")):
            return "looking"
        return "matrix" if parameter.ndim == 2 else "other"

    def positions(self, start: int, keep: Tensor) -> Tensor:
        return start + torch.stack([torch.zeros_like(keep), keep // GRID, keep % GRID])

    def finish(self, model: Any) -> None:
        for block in model.model.visual.blocks:
            parametrize.remove_parametrizations(block.attn.qkv, "weight")

    def save_processor(self, folder: Path) -> None:
        super().save_processor(folder)
        path = folder / "processor_config.json"
        settings = json.loads(path.read_text())
        # a machine without torchvision can write no other, and must not leave its stand-in's name
        settings["video_processor"] = VIDEO
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _attend(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = attention.qkv(hidden).unflatten(-1, (3, HEADS, -1)).unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    heads = (one.transpose(1, 2) for one in (query, key, value))
    mixed = whole(F.scaled_dot_product_attention, *heads)
    made: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
    return made
