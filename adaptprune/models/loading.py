"""`load`: a checkpoint to a stock transformers model and processor, with errors that say what to do."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from adaptprune.errors import AdaptPruneError, first_line
from adaptprune.families import check_there, family_of
from adaptprune.hooks.seams.catalogue import loads_as_image_text
from adaptprune.hooks.seams.processors import tokenizer_of
from adaptprune.models import lora, original
from adaptprune.models.checkpoint import HUB_OPTIONS, Checkpoint, why_refused
from adaptprune.models.hub import is_from_network
from adaptprune.models.placement import Placement
from adaptprune.models.processors import read_processor
from adaptprune.models.tokens import check_sentencepiece, conversation, make_processor, read_tokenizer

#: The name under which the small model that comes with the package is loaded.
POCKET = "pocket"
#: What people should know of it.
TOY = "The pocket model is a toy: it knows drawn shapes on a table; on photographs it answers confidently and wrongly."


def pocket_path() -> Path:
    """The folder of the pocket model."""
    return Path(str(files("adaptprune.assets"))) / "pocket"


def notice(model: Any) -> str | None:
    """What people should know before they believe a model: a sentence about the pocket model, None of others."""
    return TOY if str(model.config.name_or_path) == str(pocket_path()) else None


def load(
    name_or_path: str | None = None,
    *,
    model_base: str | None = None,
    vision_tower: str | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    device: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Load a vision-language model and its processor.

    Parameters
    ----------
    name_or_path : str, optional
        A Hugging Face name or a folder: a stock checkpoint; a LoRA adapter of one; a checkpoint in the original LLaVA
        layout (llava-v1.5, llava-v1.6), complete, as unmerged LoRA or as a projector only. None or "pocket": the small
        model inside the package, which needs no network.
    model_base : str, optional
        What a LoRA adapter or a projector was trained on. Adapters of stock checkpoints name it themselves.
    vision_tower : str, optional
        Replaces the CLIP tower that a checkpoint in the original LLaVA layout names, such as by a local copy.
    load_in_4bit, load_in_8bit : bool
        Quantise the decoder layers with bitsandbytes (4 bit: NF4, double quantisation). Vision tower, projector and
        output head stay as they are.
    device : str, optional
        "cpu", "cuda", "cuda:1", "mps". Default: cuda if there is one, then mps, then cpu.
    device_map : str or mapping, optional
        Instead of `device`: "auto", "balanced", "balanced_low_0" or "sequential" to spread the model over several
        devices, or module names to devices. Needs accelerate.
    dtype : str or torch.dtype, optional
        "float32", "float16" or "bfloat16". Default: float32 on the CPU, else what the checkpoint has.
    attn_implementation : str, optional
        "sdpa" (default where the model has it), "eager", "flash_attention_2", "flex_attention".
    **options
        Passed on to `from_pretrained`; for the original LLaVA layout those that say where files come from (`revision`,
        `token`, `cache_dir`, `local_files_only`, ...).

    Returns
    -------
    (model, processor)
        Stock classes, adapters merged, in evaluation mode, on the device.

    Raises
    ------
    AdaptPruneError
        Nothing there, not a supported vision-language model, weights that do not fit it, a pickle that would run code,
        a missing base, tower or package, a device, dtype or quantisation that this machine does not have.
    """
    source = str(pocket_path()) if name_or_path in (None, POCKET) else str(name_or_path)
    if options.get("weights_only") is False:
        raise AdaptPruneError("weights_only=False would run code from the checkpoint: leave it out.")
    placement = Placement.of(device, device_map, dtype, attn_implementation, load_in_4bit, load_in_8bit)
    checkpoint = Checkpoint(source, {key: options[key] for key in HUB_OPTIONS if key in options})
    others = {key: value for key, value in options.items() if key not in HUB_OPTIONS}
    model, processor = _read(checkpoint, model_base, vision_tower, placement, others)
    model.name_or_path = model.config.name_or_path = source  # what PEFT will call the base of an adapter
    tokenizer_of(processor).padding_side = "left"  # batches are continued at their right end
    return placement.settle(model), processor


def _refuse(options: Mapping[str, Any], what: str) -> None:
    if options:
        raise AdaptPruneError(f"{what} has no use for {', '.join(options)}: leave it out.")


def _read(
    checkpoint: Checkpoint,
    model_base: str | None,
    vision_tower: str | None,
    placement: Placement,
    options: dict[str, Any],
) -> tuple[Any, Any]:
    """Model and processor of whatever kind of checkpoint it is; `options` are those of `from_pretrained` alone."""
    with _explained(checkpoint.name):
        config, adapter = checkpoint.json("config.json"), checkpoint.json(lora.CONFIG)
        if adapter is not None:
            lora.require_peft()
        if config is not None and original.is_original(config):
            _refuse(options, "the original LLaVA layout")
            return _read_original(checkpoint, config, model_base, vision_tower, placement)
        if adapter is not None:
            base = checkpoint.other(model_base or adapter.get("base_model_name_or_path") or "")
            if not base.name:
                raise AdaptPruneError("it is an adapter that names no base: give what it was trained on as model_base.")
            if _of_base(base, lora.CONFIG) is not None:
                raise AdaptPruneError(f"its base {base.name!r} is not a complete model: give one as model_base.")
            model, processor = _read(base, None, vision_tower, placement, options)
            return lora.merge(model, checkpoint), processor
        if config is None:
            raise AdaptPruneError(
                "it is no checkpoint: neither config.json nor adapter_config.json is in it. Give the folder with one."
            )
        _refuse({"vision_tower": vision_tower} if vision_tower else {}, "a stock checkpoint")
        if model_base:
            raise AdaptPruneError("it is a complete model, neither adapter nor projector: leave model_base out.")
        check_there(str(config.get("model_type")))  # before transformers says that it has never heard of it
        return _read_stock(checkpoint, placement, options)


def _of_base(base: Checkpoint, filename: str) -> dict[str, Any] | None:
    """A JSON file of what an adapter was trained on; what is wrong is said to be wrong with that."""
    try:
        return base.json(filename)
    except AdaptPruneError as error:
        raise AdaptPruneError(f"its base {base.name!r} cannot be used (--model-base names another): {error}") from None


def _read_stock(checkpoint: Checkpoint, placement: Placement, options: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForImageTextToText

    source, where = checkpoint.name, checkpoint.where
    config = AutoConfig.from_pretrained(source, **where)
    family_of(config)
    if not loads_as_image_text(config):
        raise AdaptPruneError(
            f"{config.model_type!r} is no vision-language model that transformers loads: `adaptprune families` lists "
            "those that can be pruned."
        )
    processor = read_processor(source, config, where)  # before gigabytes are read: it may need a package
    model, found = AutoModelForImageTextToText.from_pretrained(
        source, config=config, output_loading_info=True, **placement.options(config), **where, **options
    )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise AdaptPruneError(
            f"it lacks {len(missing)} weights ({missing[0]}, ...), which would be random. Use a complete checkpoint."
        )
    return model, processor


def _read_original(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    model_base: str | None,
    vision_tower: str | None,
    placement: Placement,
) -> tuple[Any, Any]:
    layout = original.Layout.of(config, vision_tower)
    check_sentencepiece(checkpoint.other(model_base) if model_base else checkpoint)
    home, weights, is_lora = _gather(checkpoint, model_base)
    inside = {
        name.removeprefix(original.TOWER): weights.pop(name)
        for name in list(weights)
        if name.startswith(original.TOWER)
    }
    tower, tower_weights, pictures = original.read_tower(checkpoint, layout.tower, inside)
    stock = original.stock_weights(weights, layout)
    embeddings = stock.get("model.language_model.embed_tokens.weight")
    if embeddings is None:
        raise AdaptPruneError("it has no model.embed_tokens.weight: a file is missing, or it is no language model.")
    tokenizer = read_tokenizer(home, layout, embeddings.shape[0])
    rows = -(-max(len(tokenizer), embeddings.shape[0]) // original.ROWS) * original.ROWS
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        if name in stock:
            stock[name] = original.with_rows(stock[name], rows)
    stock_config = layout.stock_config(tower, rows, tokenizer.convert_tokens_to_ids("<image>"))
    model = original.build(stock_config, {**stock, **tower_weights}, placement)
    if is_lora:
        model = lora.merge(model, checkpoint, original.stock_name)
    _set_ends(model, tokenizer)
    template = conversation(layout, checkpoint.name, home.name)
    return model, make_processor(layout, tokenizer, stock_config, pictures, template)


def _gather(checkpoint: Checkpoint, model_base: str | None) -> tuple[Checkpoint, dict[str, torch.Tensor], bool]:
    """Where the tokenizer is, all weights but those of LoRA under the original names, and whether LoRA is to follow."""
    adapter = checkpoint.json(lora.CONFIG)
    weights = checkpoint.tensors("model", "pytorch_model") if adapter is None else None
    if weights is not None:
        if model_base:
            raise AdaptPruneError("it is a complete model, neither adapter nor projector: leave model_base out.")
        return checkpoint, weights, False
    stem = "non_lora_trainables" if adapter is not None else "mm_projector"
    own = checkpoint.tensors(stem)
    if own is None:
        hint = (
            "its name says LoRA, but it has no adapter_config.json" if "lora" in checkpoint.name.lower() else "weights"
        )
        raise AdaptPruneError(
            f"there are no weights in it ({hint}): neither model.safetensors nor pytorch_model.bin nor {stem}.bin."
        )
    if not model_base:
        named = (adapter or {}).get("base_model_name_or_path") or _config_name(checkpoint)
        kind = "unmerged LoRA weights" if adapter is not None else "a projector"
        hint = f" It names {named!r}." if named else ""
        raise AdaptPruneError(
            f"it holds {kind} only: give the language model it was trained on as model_base (--model-base).{hint}"
        )
    with _explained(model_base):
        base = checkpoint.other(model_base)
        if "vision_config" in base.need("config.json"):
            raise AdaptPruneError(
                "it cannot be the base of a checkpoint in the original LLaVA layout: give a Llama or Mistral language "
                "model, or a complete checkpoint in that layout."
            )
        weights = base.tensors("model", "pytorch_model")
        if weights is None:
            raise AdaptPruneError("there are no weights in it: neither model.safetensors nor pytorch_model.bin.")
    return base, {**weights, **original.unwrapped(own)}, adapter is not None


def _config_name(checkpoint: Checkpoint) -> str | None:
    """The model that config.json was made from, if it says so."""
    return (checkpoint.json("config.json") or {}).get("_name_or_path")


def _set_ends(model: Any, tokenizer: Any) -> None:
    """Token ids at which `generate` stops and with which it pads."""
    ends = [tokenizer.eos_token_id]
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if turn is not None and turn != tokenizer.unk_token_id and turn not in ends:
        ends.append(turn)
    generation = model.generation_config
    generation.bos_token_id, generation.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    generation.eos_token_id = ends if len(ends) > 1 else ends[0]


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn what goes wrong while reading `source` into one line that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except AdaptPruneError as error:
        raise AdaptPruneError(f"cannot use {source!r}: {error}") from None
    except pickle.UnpicklingError as error:
        raise AdaptPruneError(f"cannot use {source!r}: {why_refused('one of its .bin files', error)}") from None
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        raise AdaptPruneError(_why_not(source, error)) from error
    except Exception as error:
        if not is_from_network(error):
            raise
        raise AdaptPruneError(_why_not(source, error)) from error


def _why_not(source: str, error: Exception) -> str:
    from huggingface_hub.errors import HFValidationError

    reason = first_line(error)
    if is_from_network(error):
        return (
            f"cannot load {source!r}: fetching it broke off ({reason}). Try again: what has arrived is kept, and the "
            "rest follows."
        )
    if isinstance(error, (OSError, HFValidationError)) and not Path(source).is_dir():
        return (
            f"cannot load {source!r}: it is neither a folder here nor a model that could be fetched ({reason}). "
            "Leave the model out to use the one inside the package."
        )
    return f"cannot load {source!r}: {reason}"
