"""A tiny model and one prompt for every model type that prunes: wider than the zoo, and less true.

Where the zoo has a specimen, with its real processor, it is that. Other types get a config shrunk by rule and inputs
made by hand, in the form that the processor's code gives them. What is not as in a real model is in `Shape.note`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from adaptprune.testing.shapes.row import Row, prompt
from adaptprune.testing.shapes.shrink import merged, small
from adaptprune.testing.specimen import IMAGE, finish
from adaptprune.testing.zoo import SPECIMENS, specimen
from adaptprune.testing.zoo import model_type as type_of

FILES = ("thw", "squares", "sized", "sparse", "queried", "coded")
ROWS: dict[str, Row] = {
    name: row for file in FILES for name, row in importlib.import_module(f"{__name__}.{file}").ROWS.items()
}
#: All types that `shape` knows.
TYPES: tuple[str, ...] = tuple(sorted({*ROWS, *map(type_of, SPECIMENS)}))


class NotBuilt(Exception):
    """There is no tiny model of a type; the message says why."""


@dataclass
class Shape:
    """One model and one prompt.

    Attributes
    ----------
    inputs : dict
        One prompt of more than 40 tokens: text and `pictures` pictures, with its attention mask.
    note : str
        What is not as in a real model.
    """

    model_type: str
    model: Any
    inputs: dict[str, Tensor]
    image_token_id: int
    pictures: int
    note: str = ""


def shape(model_type: str, attention: str = "sdpa", *, binds: bool = True) -> Shape:
    """A tiny model of a type, and inputs for it.

    Parameters
    ----------
    attention : str
        "sdpa" or "eager".
    binds : bool
        If the type's layers choose keys (sparse attention), whether they choose fewer than the prompt has. Windows and
        chunks are always shorter than the prompt.

    Raises
    ------
    NotBuilt
        This transformers has no such type, or it is neither in these tables nor in the zoo.
    """
    name = next(iter(specimens_of(model_type)), None)
    if name is not None:
        return of_zoo(name, attention)
    if model_type not in ROWS:
        raise NotBuilt(f"{model_type}: neither a row of these tables nor a specimen of the zoo")
    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or model_type not in CONFIG_MAPPING:
        raise NotBuilt(f"transformers {hf.__version__} has no {model_type}")
    row = ROWS[model_type]
    kind = CONFIG_MAPPING[model_type]
    sizes = merged(merged(small(kind()), row.sizes), row.binding if binds else {})
    model = _built(getattr(hf, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]), kind(**sizes), attention)
    if row.after is not None:
        row.after(model)
    pictures = len(row.pictures(model.config).counts)
    return Shape(model_type, model, prompt(row, model.config), IMAGE, pictures, row.note)


def _built(kind: Any, config: Any, attention: str) -> Any:
    """A model with random weights."""
    torch.manual_seed(0)
    # SDPA is the default, of every part that has it; asked for by name, it is refused where one part has not
    within = None if attention == "sdpa" else attention
    model = kind._from_config(config, attn_implementation=within, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # much of what is new is zero (gates, tables of positions), and would hide what it does in a trained model
            if not name.endswith("bias") and not parameter.any():
                parameter.normal_(std=0.2)
    return finish(model)


def specimens_of(model_type: str) -> list[str]:
    """The specimens of a type, by name: some have several."""
    return [name for name in SPECIMENS if type_of(name) == model_type]


def of_zoo(name: str, attention: str) -> Shape:
    """A specimen, and one prompt of more than 40 tokens."""
    found = specimen(name, attention)
    inputs = found.inputs(2, words=16)
    return Shape(type_of(name), found.model, inputs, found.image_token_id, 2, "specimen of the zoo")
