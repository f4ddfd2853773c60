"""Prompts as embeddings: what a caller does who looks words up and encodes pictures himself."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor

from adaptprune.hooks.seams import parts_of
from adaptprune.testing.zoo import SPECIMENS

#: What goes along with embeddings although it is neither ids nor a picture.
PLAIN = ("attention_mask", "token_type_ids", "mm_token_type_ids")


@cache
def seeing(family: str) -> Any:
    """A specimen whose pictures are not all nought, which Gemma 3's projection is when it is new."""
    one = SPECIMENS[family]("sdpa")
    for name, weight in one.model.named_parameters():
        if name.endswith("mm_input_projection_weight"):
            torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(0))
    return one


def fresh(model: Any) -> Any:
    """The model without what stock transformers leaves on it from one prompt to the next (Qwen's `rope_deltas`)."""
    if hasattr(parts_of(model).base, "rope_deltas"):
        parts_of(model).base.rope_deltas = None
    return model


#: What stock models take from ids beyond embeddings. By embeddings alone they answer otherwise, pruned or not, so that
#: they are held to the oracle and not to the ids; so are those that count 3-D positions from ids.
FROM_IDS = {
    "gemma3n": "inputs of every layer",
    "ovis2": "which tokens are indicators, whose embeddings its encoder gives",
    "granite_docling": "which tokens are visual, for deepstack",
}


def by_ids(model: Any) -> bool:
    """Whether embeddings alone say less to a stock model than ids do."""
    return hasattr(parts_of(model).base, "get_rope_index") or model.config.model_type in FROM_IDS


def generates(model: Any) -> bool:
    """Whether stock `generate()` takes embeddings: else it says that this is not implemented."""
    return "inputs_embeds" in inspect.signature(model.prepare_inputs_for_generation).parameters


def decoder(model: Any) -> Any:
    return parts_of(model).decoder


def embed(model: Any, ids: Tensor) -> Tensor:
    return model.get_input_embeddings()(ids).clone()


def rest(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in inputs.items() if key != "input_ids"}


def plain(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: inputs[key] for key in PLAIN if key in inputs}


def encoded(model: Any, inputs: dict[str, Tensor]) -> Any:
    """What the model's public method makes of pictures."""
    base = parts_of(model).base
    names = {*inspect.signature(base.get_image_features).parameters, "image_sizes"}  # before 5.18 as a **kwarg
    if model.config.model_type == "llava" and model.config.vision_config.model_type != "pixtral":
        names.discard("image_sizes")
    return base.get_image_features(**{key: value for key, value in inputs.items() if key in names})


def features(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """All visual tokens in a row."""
    found = encoded(model, inputs).pooler_output
    parts = found if isinstance(found, (list, tuple)) else [found]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def merged(model: Any, inputs: dict[str, Tensor], placeholder: int, tokens: Tensor | None = None) -> Tensor:
    """Embeddings with the pictures put where their placeholders are."""
    states = embed(model, inputs["input_ids"])
    states[inputs["input_ids"] == placeholder] = features(model, inputs) if tokens is None else tokens
    return states
