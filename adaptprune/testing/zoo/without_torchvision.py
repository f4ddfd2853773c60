"""The stock image processors that transformers has for torchvision alone, where torchvision is missing.

LFM2-VL, Llama 4, Nemotron, Molmo 2 and Step 3.7 have no `...ImageProcessorPil`. What these classes take from
torchvision is a few small functions; here are these in plain torch, so that the tiling, the sizes and the names of what
is returned are transformers' own. Where torchvision is installed, it is used.
"""

from __future__ import annotations

import importlib
import sys
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from adaptprune.hooks.seams.processors import has_torchvision


class _Interpolation(Enum):
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


def _resize(image: Tensor, size: Any, interpolation: Any = None, antialias: bool = True) -> Tensor:
    mode = "bilinear" if interpolation in (None, _Interpolation.BILINEAR) else "bicubic"
    batch = image.reshape(-1, *image.shape[-3:]).float()
    made = torch.nn.functional.interpolate(batch, tuple(size), mode=mode, antialias=antialias)
    made = made.reshape(*image.shape[:-2], *size)
    return made if image.is_floating_point() else made.round().clamp(0, 255).to(image.dtype)


def _normalize(image: Tensor, mean: Any, std: Any, inplace: bool = False) -> Tensor:
    return (image - torch.as_tensor(mean)[:, None, None]) / torch.as_tensor(std)[:, None, None]


def _pad(image: Tensor, padding: list[int], fill: Any = 0, padding_mode: str = "constant") -> Tensor:
    left, top, right, bottom = padding
    height, width = image.shape[-2:]
    colours = image.new_tensor(fill if isinstance(fill, list) else [fill])[:, None, None]
    made = image.new_empty((*image.shape[:-2], top + height + bottom, left + width + right))
    made[:] = colours
    made[..., top : top + height, left : left + width] = image
    return made


def _stand_in() -> Any:
    functions: Any = ModuleType("torchvision.transforms.v2.functional")
    functions.resize, functions.normalize, functions.pad = _resize, _normalize, _pad
    functions.grayscale_to_rgb = lambda image: (
        image.expand(*image.shape[:-3], 3, -1, -1) if image.shape[-3] == 1 else image
    )
    functions.InterpolationMode = _Interpolation
    return functions


def image_processor(model_type: str, kind: str, **settings: Any) -> Any:
    """A stock image processor of a model type, by the name of its class.

    Without torchvision, transformers itself still says that the class is missing; its base class, which other image
    processors share, keeps the stand-ins.
    """
    where = f"transformers.models.{model_type}.image_processing_{model_type}"
    if has_torchvision():
        return getattr(importlib.import_module(where), kind)(**settings)
    backends: Any = importlib.import_module("transformers.image_processing_backends")
    functions = getattr(backends, "tvF", None) or _stand_in()
    v2 = SimpleNamespace(functional=functions)
    names: dict[str, Any] = {"torchvision": SimpleNamespace(), "torchvision.transforms": SimpleNamespace(v2=v2)}
    names |= {"torchvision.transforms.v2": v2, "torchvision.transforms.v2.functional": functions}
    sys.modules.update(names)
    try:
        made = getattr(importlib.import_module(where), kind)
    finally:
        for name in names:  # they were for this import alone: nothing else may take them for torchvision
            del sys.modules[name]
    backends.tvF = functions
    modes = {1: "LANCZOS", 2: "BILINEAR", 3: "BICUBIC"}  # by PIL's numbers
    backends.pil_torch_interpolation_mapping = {number: _Interpolation[name] for number, name in modes.items()}
    return made(**settings)
