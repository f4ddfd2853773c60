"""LoRA adapters in PEFT's format, merged into the model, which stays a stock one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from adaptprune.errors import AdaptPruneError, first_line
from adaptprune.models.checkpoint import Checkpoint

CONFIG = "adapter_config.json"
BASE = "Give the base that it was trained on as model_base (--model-base)."


def require_peft() -> Any:
    """The package peft; called before gigabytes of a base are read in vain."""
    try:
        import peft
    except ImportError:
        raise AdaptPruneError("LoRA adapters need peft: pip install 'adaptprune[lora]'.") from None
    return peft


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
    peft = require_peft()
    settings, weights = adapter.need(CONFIG), adapter.tensors("adapter_model")
    if not weights:
        raise AdaptPruneError("it has neither adapter_model.safetensors nor adapter_model.bin: fetch one of them.")
    config = _config(peft, settings, adapter)
    if renamed is not None:
        prefix = "base_model.model."
        weights = {prefix + renamed(name.removeprefix(prefix)): tensor for name, tensor in weights.items()}
        # by full names: short ones, such as q_proj, would match modules of the vision tower too
        config.target_modules = {name.removeprefix(prefix).rpartition(".lora_")[0] for name in weights}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about what PEFT calls in transformers
            wrapped = peft.get_peft_model(model, config)
            found: Any = peft.set_peft_model_state_dict(wrapped, weights)
    except KeyError as error:
        raise AdaptPruneError(f"the adapter lacks {error.args[0]!r}, which its base has. {BASE}") from None
    except (ValueError, RuntimeError) as error:
        raise AdaptPruneError(f"the adapter does not fit its base ({' '.join(str(error).split())}). {BASE}") from None
    # PEFT lists every weight of the base as missing; those of the adapter are under its name, "default"
    missing = [name for name in found.missing_keys if ".default" in name]
    for names, fault in ((missing, "lacks"), (found.unexpected_keys, "has no place for")):
        if names:
            raise AdaptPruneError(
                f"the adapter does not fit its base: it {fault} {len(names)} weights ({names[0]}, ...). {BASE}"
            )
    return wrapped.merge_and_unload()


def _config(peft: Any, settings: dict[str, Any], adapter: Checkpoint) -> Any:
    if settings.get("peft_type") != "LORA":
        raise AdaptPruneError(f"the adapter is of the type {settings.get('peft_type')!r}: only LORA can be merged.")
    path = adapter.file(CONFIG)
    assert path is not None
    try:
        config = peft.PeftConfig.from_pretrained(str(path.parent))
    except (ValueError, TypeError, KeyError) as error:
        raise AdaptPruneError(
            f"{CONFIG} is not one that peft {peft.__version__} reads ({first_line(error)})."
        ) from None
    config.base_model_name_or_path = None  # PEFT warns if the base is called otherwise here
    return config
