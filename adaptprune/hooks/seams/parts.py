"""The parts of a vision-language model: where its decoder, its layers, its encoders and its placeholders are."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams.layers import key_sources, without_keys
from adaptprune.hooks.seams.versions import misfit

#: Where a module may hold the decoder, or another module that does.
INWARD = ("language_model", "text_model", "decoder", "model")
#: How a picture or video is put in: the method of the base that encodes it, and its placeholder in the config.
ENCODERS = {"image": "get_image_features", "video": "get_video_features"}
PLACEHOLDERS = {"image": ("image_token_id", "image_token_index", "image_patch_id"), "video": ("video_token_id",)}
#: What a family calls the pictures or videos among the arguments of an encode method, whatever its first one is called.
PICTURES = {"image": "pixel_values", "video": "pixel_values_videos"}
#: How other arguments of a forward that hold pictures or what was made of them begin.
SHOWN = ("pixel_values", "image_hidden_states", "image_embeds", "image_features", "video_embeds", "video_features")
#: The argument by which features that were encoded before go into a forward (`generate()` does so since 5.18).
READY = "mm_encoder_outputs"


@dataclass(frozen=True)
class Parts:
    """A model taken apart.

    Attributes
    ----------
    model : nn.Module
        The whole, whose `generate` is called.
    base : nn.Module
        Encodes the pictures; its forward sees `input_ids`. May be `model` itself.
    decoder : nn.Module
        The language model: the module that runs the layers.
    layers : list of nn.Module
        The decoder's layers, in the order in which they run.
    keyless : frozenset of int
        Those that hold no keys: they have another memory, or none.
    sources : dict of int to int
        Those that read the keys of another layer, and which.
    """

    model: nn.Module
    base: nn.Module
    decoder: nn.Module
    layers: list[nn.Module]
    keyless: frozenset[int] = frozenset()
    sources: Mapping[int, int] = field(default_factory=dict)


def parts_of(model: nn.Module) -> Parts:
    """Take a model apart, by its structure; AdaptPruneError if a part is not where it is looked for.

    The base is the innermost module that encodes pictures and holds a decoder; the model, the innermost one around it
    that generates (the thinker of an omni model).
    """
    bases = [module for module in model.modules() if callable(getattr(type(module), ENCODERS["image"], None))]
    if not bases:
        raise misfit("the image encoder", f"{type(model).__name__} has no {ENCODERS['image']}")
    leading = [(base, inmost) for base in bases if has_layers(inmost := _inmost(base))]
    if not leading:
        inmost = _inmost(bases[-1])
        if inmost is bases[-1]:
            raise misfit("the decoder", f"{type(inmost).__name__} has none of {', '.join(INWARD)}")
        raise misfit("the decoder's layers", f"{type(inmost).__name__} has no list of layers")
    base, decoder = leading[-1]  # modules() goes inward
    if decoder is base:
        raise AdaptPruneError(
            f"{type(base).__name__} encodes pictures and runs the layers itself, so that it is not known where its "
            "prompt begins: this model cannot be pruned."
        )
    generating = [module for module in model.modules() if hasattr(module, "generate")]
    around = [module for module in generating if any(each is base for each in module.modules())]
    listed = list(decoder.layers)
    sources = key_sources(listed)
    return Parts(
        around[-1] if around else model,
        base,
        decoder,
        listed,
        without_keys(decoder.config, listed, sources),
        sources,
    )


def has_layers(module: Any) -> bool:
    """Whether a module has a list of layers that is not empty."""
    layers = getattr(module, "layers", None)
    return isinstance(layers, nn.ModuleList) and len(layers) > 0


def _inmost(base: nn.Module) -> Any:
    """The first module with layers on the way inward, or where that way ends."""
    module: Any = base
    while not has_layers(module):
        inner = (getattr(module, name, None) for name in INWARD)
        found = next((each for each in inner if isinstance(each, nn.Module)), None)
        if found is None:
            break
        module = found
    return module


def is_stock(found: Parts) -> bool:
    """Whether a model's parts are of transformers' own classes, as far as they are run one by one here."""
    parts = (found.model, found.base, found.decoder, *found.layers)
    kinds = {type(getattr(part, "_orig_mod", part)) for part in parts}
    return all(kind.__module__.startswith("transformers.models.") for kind in kinds)


def unwrapped(model: Any) -> tuple[nn.Module, Callable[[], Tensor] | None]:
    """The model inside PEFT's wrapper, and what gives the embeddings that PEFT puts in front of every prompt, (n, D).

    Raises
    ------
    AdaptPruneError
        It is no transformers model, or compiled as a whole.
    """
    if not isinstance(model, nn.Module):
        raise AdaptPruneError(f"model is a {type(model).__name__}: pass a loaded model (adaptprune.load gives one).")
    if hasattr(model, "_orig_mod"):
        raise AdaptPruneError(
            "the model is wrapped by torch.compile, which is not supported: pass the model inside it, or compile its "
            "decoder layers."
        )
    if getattr(model, "config", None) is None:
        raise AdaptPruneError(f"{type(model).__name__} has no config: pass a transformers model (adaptprune.load).")
    if not hasattr(model, "get_base_model"):
        return model, None
    wrapper: Any = model
    base: nn.Module = wrapper.get_base_model()
    if not getattr(getattr(wrapper, "active_peft_config", None), "num_virtual_tokens", None):
        return base, None
    return base, lambda: wrapper.get_prompt(batch_size=1)[0]


# -- pictures ----------------------------------------------------------------------------------------------------------


def placeholder(config: Any, modality: str) -> int | None:
    """The token that stands for a visual token of a modality ("image", "video") in `input_ids`."""
    return next((found for name in PLACEHOLDERS[modality] if (found := getattr(config, name, None)) is not None), None)


def features_of(encoded: Any) -> Any:
    """What goes in place of the placeholders, out of what an encode method returned: (n, D), or one per picture.

    Llama 4 projects its tower's states only in its forward: there they stand for what they will be. Granite 4 has
    features for some layers each, and puts none in place.
    """
    for name in ("pooler_output", "deepstack_features", "last_hidden_state"):
        found = getattr(encoded, name, None)
        if found is not None:
            return found[0][1] if name == "deepstack_features" else found
    raise misfit("the image encoder", f"it returned a {type(encoded).__name__} without pooler_output")


def ready(features: Mapping[str, Any]) -> dict[str, Any]:
    """The argument that hands features, by modality, to a forward."""
    return {READY: dict(features)}


def handed_ahead(model: Any, pictures: Tensor) -> dict[str, Any]:
    """The arguments that hand pictures, (n, 3, H, W), to forwards: encoded here if the model takes features."""
    if takes_ready(model):
        return ready({"image": getattr(model, ENCODERS["image"])(pictures)})
    return {PICTURES["image"]: pictures}


def takes_ready(base: nn.Module) -> bool:
    """Whether a model's forward takes features that were encoded before."""
    return READY in inspect.signature(base.forward).parameters


@functools.cache
def _picture_arguments(kind: Any) -> tuple[str, ...]:
    """The arguments of a forward that hold pictures or videos: the first of each encode method and its other names."""
    found: list[str] = []
    for method in ENCODERS.values():
        function = getattr(kind, method, None)
        if function is not None:
            names = list(inspect.signature(function).parameters)[1:]  # [0] is self
            found += [name for name in names if name == names[0] or name.startswith("pixel_values")]
    return tuple(found)


def shows_pictures(base: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the arguments of a forward of the base hold pictures, videos or their features."""
    handed = inputs.get(READY)
    if handed is not None and any(value is not None for value in dict(handed).values()):
        return True
    kind: Any = type(base)
    named = _picture_arguments(kind)
    return any(value is not None and (name in named or name.startswith(SHOWN)) for name, value in inputs.items())


def tile_counts(base: Any, image_sizes: Any) -> list[int]:
    """Into how many pictures (tiles and the whole) a model of LLaVA-NeXT's kind cuts images of these sizes, (n, 2)."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    side = base.config.vision_config.image_size
    return [image_size_to_num_patches(size, base.config.image_grid_pinpoints, side) for size in image_sizes]


def packed(base: Any, tiles: list[Tensor], image_sizes: Any, newline: Tensor, **options: Any) -> list[Tensor]:
    """The tiles of each image, (tiles, tokens, D), as such a model puts them into one line, (n, D)."""
    made = base.pack_image_features(tiles, image_sizes, image_newline=newline, **options)
    lines: list[Tensor] = made[0] if isinstance(made, tuple) else made
    return lines


# -- embeddings -------------------------------------------------------------------------------------------------------


def token_embeddings(base: nn.Module) -> nn.Module:
    """The module that turns token ids into what the decoder reads."""
    embed: nn.Module = base.get_input_embeddings()  # type: ignore[operator]
    return embed


def embeddings_of(base: nn.Module, tokens: Tensor, like: Tensor) -> Tensor:
    """The embeddings of tokens (n,), (n, D), in the dtype and on the device of `like`.

    Raises
    ------
    AdaptPruneError
        The module that makes them cannot be asked.
    """
    embed = token_embeddings(base)
    place = next((each.device for each in embed.parameters() if each.device.type != "meta"), like.device)
    try:
        rows: Tensor = embed(tokens.to(place))
    except (RuntimeError, NotImplementedError, IndexError) as error:
        raise AdaptPruneError(
            f"inputs_embeds are compared with the embeddings of tokens, which {type(embed).__name__} does not give "
            f"({error}): pass input_ids."
        ) from None
    return rows.to(like.device, like.dtype)


def num_tokens(base: nn.Module) -> int:
    """How many tokens have an embedding."""
    embed: Any = token_embeddings(base)
    return int(getattr(embed, "num_embeddings", None) or text_config(base.config).vocab_size)


# -- what a config says ------------------------------------------------------------------------------------------------


def text_config(config: Any) -> Any:
    """The decoder's part of a config."""
    return config.get_text_config()


def context(config: Any) -> int | None:
    """Tokens that a prompt and its answer may have together; None if the config does not say."""
    return getattr(text_config(config), "max_position_embeddings", None)


def sliding_window(decoder: nn.Module) -> int | None:
    """The window of a decoder that has sliding layers; None if every layer sees everything."""
    config: Any = decoder.config
    width: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return width if kinds is None or any("sliding" in kind for kind in kinds) else None


def recomputes(decoder: nn.Module) -> bool:
    """Whether gradient checkpointing runs the decoder's layers again in the backward pass."""
    return decoder.training and any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules())


def find(parts: Parts) -> str:
    """Check what is assumed of a model's structure; says where its parts are."""
    if not callable(getattr(parts.base, "get_input_embeddings", None)):
        raise misfit("the token embeddings", f"{type(parts.base).__name__} has no get_input_embeddings")
    return f"{type(parts.decoder).__name__} of {len(parts.layers)} layers"


def find_encoding(parts: Parts) -> str:
    """Check what is assumed of how pictures go in; says by which methods, and whether ahead of the first forward."""
    kind: Any = type(parts.base)
    if not _picture_arguments(kind):
        raise misfit("the image encoder", f"{kind.__name__}.{ENCODERS['image']} takes no pictures")
    if placeholder(parts.model.config, "image") is None:
        raise misfit(
            "the placeholder", f"{type(parts.model.config).__name__} sets none of {', '.join(PLACEHOLDERS['image'])}"
        )
    ahead = f"ahead, as {READY}" if takes_ready(parts.model) else "in the first forward"
    return f"{', '.join(name for name in ENCODERS.values() if hasattr(parts.base, name))}; {ahead}"
