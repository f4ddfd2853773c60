"""The specimens that tests run over, which of them stand for all, and what suits each."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import adaptprune
from adaptprune.families import family_of
from adaptprune.hooks.seams.versions import installed
from adaptprune.testing import zoo
from adaptprune.testing.oracle import attends, decoder_layers, hiding
from adaptprune.testing.zoo import SPECIMENS

STEPS = 5
TOLERANCE = 1e-4

#: One specimen of every kind of decoder or layout, for tests that cross families with much else.
KINDS = {
    "one square grid": "llava",
    "tiles and newline tokens": "llava_next",
    "tiles, each a grid": "internvl",
    "mrope": "qwen2_5_vl",
    "deepstack": "qwen3_vl",
    "deepstack at listed layers": "granite4_vision",
    "bidirectional pictures, sliding windows": "gemma3",
    "shared keys, streams": "gemma3n",
    "shared keys, a cut tail": "gemma4",
    "linear attention": "qwen3_5",
    "convolutions": "lfm2_vl",
    "state space": "nemotron_h_omni",
    "latent attention": "kimi_k25",
    "chunked attention": "llama4",
    "sliding windows": "cohere2_vision",
    "experts of visual tokens": "ernie4_5_vl_moe",
    "features added to embeddings": "molmo2",
    "no grid": "idefics2",
}

FAMILY = pytest.mark.parametrize("family", SPECIMENS)
KIND = pytest.mark.parametrize("family", [name for name in KINDS.values() if name in SPECIMENS])


def specimen(name: str, attention: str = "sdpa") -> Any:
    """One of the zoo's; the test is skipped if this transformers is older than those that it is tested with."""
    if name not in SPECIMENS:
        pytest.skip(f"{name} is not tested with transformers {installed()}")
    return zoo.specimen(name, attention)


#: Models whose pictures see all of themselves: no reselect, and no flash attention.
BIDIRECTIONAL = ("gemma3", "paligemma", "gemma3n", "gemma4", "gemma4_unified", "molmo2")
#: Decoders whose sliding windows are shorter than the tests' prompts, which flash attention is refused for.
WINDOWED = ("exaone4_5", "cohere_compass", "cohere2_vision", "aya_vision", "idefics2", "lfm3_vl", "step3p7")
#: Decoders with layers that remember otherwise than by keys, and such with layers that read the keys of another.
HYBRID = ("qwen3_5", "qwen3_5_moe", "minicpmv4_6", "minicpmv4_7", "lfm2_vl", "lfm3_vl", "nemotron_h_omni")
SHARING = ("gemma3n", "gemma4")
#: reselect=True is refused on all of these.
FIXED = (*BIDIRECTIONAL, *HYBRID, *SHARING)
#: reselect=True is refused at the first prompt: layers are handed more than one turn's memory has.
ANEW_LACKS = {
    "llama4": "hands its layers Tensor",  # complex position embeddings
    "cohere_compass": "hands its layers NoneType",  # rotary ones for some layers, none for others
    "ernie4_5_vl_moe": "moe_mm_token_type_ids",
}
#: In stock transformers, rows with pictures depend on one another (positions are taken from the first).
MIXES_ROWS = ("hunyuan_vl",)
#: Several sequences per prompt go wrong in stock transformers if prompts have different numbers of pictures (or, where
#: the second is True, any): rows of one prompt differ.
MIXES_SEQUENCES = {
    **dict.fromkeys(("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "granite4_vision"), False),
    "llama4": True,
}
#: Stock `generate()` has no assisted decoding for layers whose memory cannot be taken back ("stateful"), or it fails.
NO_DRAFTS = {
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "minicpmv4_6", "minicpmv4_7", "nemotron_h_omni"), "stateful models"),
    "ernie4_5_vl_moe": "The shape of the mask",
}
#: Their processors take no prompt without a picture.
NO_TEXT = ("paligemma",)


def first_layer(family: str) -> int:
    """The layer K that a family is tested with: 2, or the first that it allows."""
    return first_layer_of(specimen(family).model)


def first_layer_of(model: Any) -> int:
    return max(2, family_of(model.config).smallest_layer(model.config))


def suiting(family: str, method: str = "adaptprune", layer: int | None = None) -> dict[str, Any]:
    """The arguments of `prune` with which a method suits a specimen, at layer K (by default its `first_layer`).

    A decoder whose layer K has no keys is compared by those of layer K-1.
    """
    layer = first_layer(family) if layer is None else layer
    options: dict[str, Any] = {"method": method, "layer": layer}
    layers = decoder_layers(specimen(family).model)
    if method in ("adaptprune", "fastv"):
        assert attends(layers[layer - 1]), f"{family} has no attention in layer {layer - 1}"
    if method == "adaptprune" and (not attends(layers[layer]) or hasattr(layers[layer], "altup")):
        options["keys"] = "previous"
    return options


def pruned(one: Any, family: str, method: str = "adaptprune", *, model: Any = None, **options: Any) -> Any:
    """`prune` a specimen with what suits it; options win."""
    return adaptprune.prune(model or one.model, **{"keep_ratio": 0.3, **suiting(family, method), **options})


def generate(one: Any, inputs: dict[str, Tensor], steps: int = STEPS, **options: Any) -> tuple[Tensor, Tensor]:
    """Sequences, and the logits of every step, (B, steps, V)."""
    out = one.model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    return out.sequences, torch.stack(out.logits, dim=1)


def gone(one: Any, inputs: dict[str, Tensor], report: Any) -> list[list[int]]:
    """Positions of dropped tokens: placeholders on a grid that the report does not list as kept."""
    return [sorted(set(a) - set(b.kept)) for a, b in zip(all_of(one, inputs), report.samples, strict=True)]


def all_of(one: Any, inputs: dict[str, Tensor]) -> list[list[int]]:
    """By row, positions of all visual tokens that can be dropped."""
    with torch.no_grad(), adaptprune.prune(one.model, "random", keep_ratio=1, layer=first_layer_of(one.model)) as whole:
        one.model(**inputs)
    return [sample.kept for sample in whole.samples]


@contextmanager
def oracle(
    one: Any, inputs: dict[str, Tensor], layer: int, hidden: list[list[int]], decode_from: int | None = None
) -> Iterator[None]:
    """The unpruned model in which `hidden` positions are not seen from a layer on.

    `inputs` are those of the whole conversation: their mask tells padding.
    """
    with hiding(one.model, layer, hidden, decode_from=decode_from, padding=inputs["attention_mask"]):
        yield


def equal(found: Tensor, expected: Tensor) -> None:
    """Equal within the tolerance of the oracle."""
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def extended(inputs: dict[str, Tensor], ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The inputs of a conversation that goes on with words: `ids` and `mask` are those of all of it."""
    new = ids.shape[1] - inputs["input_ids"].shape[1]
    longer = {
        key: torch.nn.functional.pad(inputs[key], (0, new))
        for key in ("mm_token_type_ids", "token_type_ids")
        if key in inputs
    }
    return {**inputs, **longer, "input_ids": ids, "attention_mask": mask}


def takes(model: Any, name: str) -> bool:
    """Whether a model's forward has an argument."""
    return name in inspect.signature(model.forward).parameters
