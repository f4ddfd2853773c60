"""A stand-in for vision towers of timm, so that models which have one can be built without it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

KINDS: dict[type, type] = {}


class Tower(PreTrainedModel):
    """Patches, and a look at their neighbours.

    Returns the features as a picture, (B, D, rows, columns), as timm's convolutional towers do, or as a sequence, (B,
    rows * columns, D), as its transformers do, with a class token in front where the config asks for one.
    """

    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width, patch = config.hidden_size, config.patch
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.around = nn.Conv2d(width, width, 3, padding=1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves those of `nn.Conv2d`, which are visible."""

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        states = torch.tanh(self.patches(pixel_values.to(self.dtype)))
        states = states + self.around(states)
        if self.config.form == "sequence":
            states = states.flatten(2).transpose(1, 2)
            if self.config.class_token:
                states = torch.cat([states.mean(dim=1, keepdim=True), states], dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=states)


def stand_in(base: Any, form: str, *, patch: int, hidden_size: int, class_token: bool = False, **options: Any) -> Any:
    """The config of a Tower, of the class that a model's config wants: AutoModel makes a Tower of it."""
    if base not in KINDS:
        KINDS[base] = type(f"StandIn{base.__name__}", (base,), {"model_type": f"stand_in_{base.model_type}"})
        AutoModel.register(KINDS[base], type(f"Tower{base.__name__}", (Tower,), {"config_class": KINDS[base]}))
    config = KINDS[base](hidden_size=hidden_size, **options)
    config.patch, config.form, config.class_token = patch, form, class_token
    return config
