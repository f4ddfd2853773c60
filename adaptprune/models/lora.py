"""LoRA adapters in PEFT's format, merged into the model, which stays a stock one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptprune.errors import AdaptPruneError
from adaptprune.models.checkpoint import Checkpoint, first_line

CONFIG = "adapter_config.json"


def merge(model: Any, adapter: Checkpoint, renamed: Callable[[str], str] | None = None) -> Any:
    """`model` with the adapter's weights added to its own.

    Parameters
    ----------
    adapter : Checkpoint
        Holds adapter_config.json and adapter_model.safetensors or .bin.
    renamed : callable, optional
        Gives the stock name of a module that the adapter was trained on under another name.

    Raises
    ------
    AdaptPruneError
        PEFT is missing, it is no LoRA, or one of its weights has no place or another shape.
    """
    try:
        import peft
    except ImportError:
        raise AdaptPruneError("LoRA adapters need peft: pip install 'adaptprune[lora]'.") from None
    path = adapter.file(CONFIG)
    weights = adapter.tensors("adapter_model")
    if path is None or not weights:
        raise AdaptPruneError(f"{adapter.name!r} lacks {CONFIG} or adapter_model.safetensors (or .bin): fetch it too.")
    config = _config(peft, path)
    if renamed is not None:
        prefix = "base_model.model."
        weights = {prefix + renamed(name.removeprefix(prefix)): tensor for name, tensor in weights.items()}
        # by full names: short ones, such as q_proj, would match modules of the vision tower too
        config.target_modules = {name.removeprefix(prefix).rpartition(".lora_")[0] for name in weights}
    try:
        wrapped = peft.get_peft_model(model, config)
        found = peft.set_peft_model_state_dict(wrapped, weights)
    except (ValueError, RuntimeError, KeyError) as error:
        raise AdaptPruneError(
            f"the adapter does not fit its base ({first_line(error)}): give the base that it was trained on as "
            "model_base."
        ) from None
    # PEFT lists every weight of the base as missing; those of the adapter are under its name, "default"
    missing = [name for name in found.missing_keys if ".default" in name]
    for names, fault in ((missing, "lacks"), (found.unexpected_keys, "has no place for")):
        if names:
            raise AdaptPruneError(
                f"the adapter and its base do not belong together: it {fault} {len(names)} weights ({names[0]}, ...). "
                "Give the base that it was trained on as model_base."
            )
    return wrapped.merge_and_unload()


def _config(peft: Any, path: Path) -> Any:
    try:
        config = peft.PeftConfig.from_pretrained(str(path.parent))
    except (ValueError, TypeError, KeyError) as error:
        raise AdaptPruneError(
            f"{CONFIG} is not one that peft {peft.__version__} reads ({first_line(error)})."
        ) from None
    if config.peft_type != peft.PeftType.LORA:
        raise AdaptPruneError(f"the adapter is of the type {config.peft_type!s}: only LORA can be merged into a model.")
    return config
