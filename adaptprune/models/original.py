"""LLaVA checkpoints in their authors' layout (haotian-liu/LLaVA), as stock transformers classes.

Facts from llava/model/{builder,llava_arch}.py and multimodal_{encoder,projector}/builder.py of that repository. A full
checkpoint, a projector and LoRA weights on a base are all the same here: named tensors, the later ones replacing the
earlier. Every weight is used, and every parameter has one, or it is an error. No forward is written here.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptprune.errors import AdaptPruneError, first_line
from adaptprune.families import family_of
from adaptprune.models.checkpoint import Checkpoint
from adaptprune.models.placement import Placement

#: Their names of modules, and the stock ones.
NAMES = (
    (re.compile(r"^model\.mm_projector\.0\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^model\.(embed_tokens|layers|norm)\."), r"model.language_model.\1."),
)
#: The same, where the projector is a single matrix.
LINEAR_NAMES = ((re.compile(r"^model\.mm_projector\.(?=\w+$)"), "model.multi_modal_projector.linear_1."), NAMES[-1])
TOWER = "model.vision_tower.vision_tower."
#: The stock embedding and output matrices have rows up to the next multiple, as the converted checkpoints have.
ROWS = 64
#: What else their `model_type` can be, and where the same models are for stock classes.
ELSEWHERE = {
    "llava_mpt": "no stock class has that language model",
    "llava_qwen": "load the converted checkpoint instead (llava-hf/llava-onevision-..., llava-hf/llava-interleave-...)",
}


def is_original(config: dict[str, Any]) -> bool:
    """Whether config.json is in the authors' layout: language model and image settings in one flat object."""
    return "vision_config" not in config and ("mm_vision_tower" in config or _kind(config) in ("llava", *ELSEWHERE))


def _kind(config: dict[str, Any]) -> str:
    kind = str(config.get("model_type"))
    return "llava" if kind in ("llava", "llava_llama", "llava_mistral") else kind


@dataclass(frozen=True)
class Layout:
    """The part of their config.json that is about images, checked.

    Attributes
    ----------
    text : dict
        The whole object: the language model's settings are among it.
    tower : str
        Name or folder of the vision tower.
    feature_layer : int
        Hidden states of the tower that are projected; -2 is the last but one layer's.
    class_token : bool
        Whether the tower's class token is kept in front of the patches.
    linear : bool
        The projector is one matrix instead of two with a GELU between them.
    pinpoints : list of (width, height), or None
        Sizes that pictures are cut into tiles at (LLaVA 1.6); None: one square picture (LLaVA 1.5).
    pad : bool
        Pictures are padded to squares instead of being cropped.
    patch_token, start_end : bool
        Whether ``<im_patch>``, and whether ``<im_start>`` and ``<im_end>``, are in the vocabulary; the latter then
        stand around every image.
    """

    text: dict[str, Any]
    tower: str
    feature_layer: int
    class_token: bool
    linear: bool
    pinpoints: list[tuple[int, int]] | None
    pad: bool
    patch_token: bool
    start_end: bool

    @classmethod
    def of(cls, config: dict[str, Any], vision_tower: str | None) -> Layout:
        """Read their config.json; `vision_tower` replaces the one it names."""
        kind = _kind(config)
        if kind != "llava":
            reason = ELSEWHERE.get(kind, "known are llava, llava_llama and llava_mistral")
            raise AdaptPruneError(f"model_type {kind!r} of the original LLaVA layout is not supported: {reason}.")
        tower = vision_tower or config.get("mm_vision_tower") or config.get("vision_tower")
        if not tower:
            raise AdaptPruneError("config.json names no mm_vision_tower: give the folder of one as vision_tower.")
        _allow(config, "mm_projector_type", "linear", ("linear", "mlp2x_gelu"))
        _allow(config, "mm_vision_select_feature", "patch", ("patch", "cls_patch"))
        _allow(config, "s2", False, (False,))
        aspect = _allow(config, "image_aspect_ratio", "square", ("square", "pad", "anyres", None))
        tiles = aspect == "anyres"
        _allow(config, "mm_patch_merge_type", "flat", ("spatial_unpad",) if tiles else ("flat", "spatial"))
        class_token = config.get("mm_vision_select_feature", "patch") == "cls_patch"
        if tiles and class_token:
            raise AdaptPruneError(
                "image_aspect_ratio 'anyres' with mm_vision_select_feature 'cls_patch' is not defined."
            )
        return cls(
            text=config,
            tower=str(tower),
            feature_layer=int(config.get("mm_vision_select_layer", -2)),
            class_token=class_token,
            linear=config.get("mm_projector_type", "linear") == "linear",
            pinpoints=_pinpoints(config) if tiles else None,
            pad=aspect == "pad",
            patch_token=bool(config.get("mm_use_im_patch_token", True)),
            start_end=bool(config.get("mm_use_im_start_end", False)),
        )

    @property
    def mistral(self) -> bool:
        """The language model is a Mistral instead of a Llama."""
        return self.text.get("model_type") == "llava_mistral" or any(
            "Mistral" in name for name in self.text.get("architectures") or []
        )

    def text_config(self, rows: int) -> Any:
        """Config of the language model, with `rows` rows in its vocabulary."""
        from transformers import LlamaConfig, MistralConfig

        kind = MistralConfig if self.mistral else LlamaConfig
        known = {*kind().to_dict(), "rope_theta", "rope_scaling"} - {"model_type", "architectures", "dtype"}
        values = {key: value for key, value in self.text.items() if key in known}
        dtype = self.text.get("torch_dtype") or self.text.get("dtype")
        return kind(**{**values, "vocab_size": rows, "dtype": dtype})

    def stock_config(self, tower: Any, rows: int, image_token_id: int) -> Any:
        """Config of the stock model."""
        from transformers import LlavaConfig, LlavaNextConfig

        options: dict[str, Any] = {
            "vision_config": tower,
            "text_config": self.text_config(rows),
            "image_token_index": image_token_id,
            "vision_feature_layer": self.feature_layer,
            "vision_feature_select_strategy": "full" if self.class_token else "default",
            "projector_hidden_act": "linear" if self.linear else "gelu",
            "image_seq_length": (tower.image_size // tower.patch_size) ** 2 + self.class_token,
            "tie_word_embeddings": bool(self.text.get("tie_word_embeddings", False)),
        }
        if self.pinpoints is None:
            return LlavaConfig(**options)
        # stock pairs are (height, width); the order of the list decides between sizes that fit equally well
        return LlavaNextConfig(**options, image_grid_pinpoints=[[height, width] for width, height in self.pinpoints])


def _allow(config: dict[str, Any], key: str, default: Any, allowed: tuple[Any, ...]) -> Any:
    value = config.get(key, default)
    if value not in allowed:
        names = ", ".join(repr(name) for name in allowed if name is not None)
        raise AdaptPruneError(f"{key} {value!r} in config.json has no stock counterpart. Supported: {names}.")
    return value


def _pinpoints(config: dict[str, Any]) -> list[tuple[int, int]]:
    value = config.get("image_grid_pinpoints")
    try:
        listed: Any = ast.literal_eval(value) if isinstance(value, str) else value
        pairs = [(int(width), int(height)) for width, height in listed]
    except (ValueError, SyntaxError, TypeError):
        pairs = []
    if not pairs:
        raise AdaptPruneError(f"image_grid_pinpoints {value!r} in config.json is no list of (width, height).")
    return pairs


def stock_name(name: str, linear: bool = False) -> str:
    """The stock name of one of their weights or modules; other names stay as they are, and have no place."""
    for pattern, replacement in LINEAR_NAMES if linear else NAMES:
        name, found = pattern.subn(replacement, name)
        if found:
            break
    return name


def unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights saved from a PEFT model or from a projector's training, under the names of a full checkpoint."""
    renamed = {}
    for name, tensor in weights.items():
        plain = re.sub(r"^(?:base_model\.)?(?:model\.)*(?=(?:mm_projector|image_newline|embed_tokens|layers|norm|"
                       r"vision_tower)\b)", "model.", name)  # fmt: skip
        renamed[re.sub(r"^(?:base_model\.)?(?:model\.)*(?=lm_head\b)", "", plain)] = tensor
    return renamed


def read_tower(
    checkpoint: Checkpoint, name: str, inside: dict[str, Tensor]
) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """Config, weights and picture settings of the CLIP tower.

    Parameters
    ----------
    name : str
        Folder or hub name; its config and picture settings are always read.
    inside : dict
        Weights that the LLaVA checkpoint itself has for the tower; they win over the tower's own.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    files = checkpoint.other(name)
    try:
        kind, pictures = files.need("config.json").get("model_type"), files.need("preprocessor_config.json")
        if kind not in ("clip", "clip_vision_model"):
            raise AdaptPruneError(f"it is a {kind!r}, and LLaVA's towers are CLIP models.")
        config = CLIPVisionConfig.from_pretrained(name, **files.where)
        source = {"state_dict": inside, "config": config} if inside else {"config": config, **files.where}
        model, found = CLIPVisionModel.from_pretrained(
            None if inside else name, **source, dtype="auto", output_loading_info=True
        )
    except (OSError, AdaptPruneError, RuntimeError) as error:
        raise AdaptPruneError(
            f"its vision tower {name!r} cannot be read: {first_line(error)} "
            "Give the folder of a copy as vision_tower (--vision-tower)."
        ) from None
    check_names(
        set(found["missing_keys"]), set(found["unexpected_keys"]) if inside else set(), f"vision tower {name!r}"
    )
    return config, {f"model.vision_tower.{key}": tensor for key, tensor in model.state_dict().items()}, pictures


def stock_weights(weights: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Their weights, the tower's excepted, under stock names."""
    ignored = re.compile(
        r"rotary_emb\.inv_freq$" if layout.pinpoints else r"rotary_emb\.inv_freq$|^model\.image_newline$"
    )
    stock = {stock_name(name, layout.linear): tensor for name, tensor in weights.items() if not ignored.search(name)}
    if layout.linear and "model.multi_modal_projector.linear_1.weight" in stock:
        # the stock projector has a second matrix: the identity leaves every number as it is
        first = stock["model.multi_modal_projector.linear_1.weight"]
        stock["model.multi_modal_projector.linear_2.weight"] = torch.eye(first.shape[0], dtype=first.dtype)
        stock["model.multi_modal_projector.linear_2.bias"] = torch.zeros(first.shape[0], dtype=first.dtype)
    return stock


def with_rows(matrix: Tensor, rows: int) -> Tensor:
    """`matrix` (V, D) with its mean row repeated up to `rows`: a mean logit never is the largest."""
    missing = rows - matrix.shape[0]
    if missing <= 0:
        return matrix
    mean = matrix.float().mean(dim=0, keepdim=True).to(matrix.dtype)
    return torch.cat([matrix, mean.expand(missing, -1)])


def check_names(missing: set[str], unused: set[str], what: str) -> None:
    """Raise if a parameter has no weight or a weight has no place."""
    for names, fault in ((missing, "lacks"), (unused, "has no place for")):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise AdaptPruneError(
                f"{what} {fault} {len(names)} weight{'s' if len(names) > 1 else ''} ({shown}): config.json and the "
                "weights do not belong together, or a file is missing."
            )


def build(config: Any, weights: dict[str, Tensor], placement: Placement) -> Any:
    """The stock model with these weights, each of them compared by name and shape first."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    if config.tie_word_embeddings:
        weights.setdefault("lm_head.weight", weights["model.language_model.embed_tokens.weight"])
    check_names(set(wanted) - set(weights), set(weights) - set(wanted), "the checkpoint")
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise AdaptPruneError(
                f"{name} has the shape {tuple(weights[name].shape)}, and config.json asks for {shape}: they do not "
                "belong together."
            )
    family_of(config)
    return type(empty).from_pretrained(None, config=config, state_dict=weights, **placement.options(config))
