"""`load`: a checkpoint to a stock transformers model and processor, with errors that say what to do."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from adaptprune.errors import AdaptPruneError
from adaptprune.families import family_of
from adaptprune.registry import did_you_mean

#: The name under which the small model that comes with the package is loaded.
POCKET = "pocket"
#: Options of `from_pretrained` that say where files come from: config and processor take them too.
HUB_OPTIONS = ("revision", "token", "subfolder", "cache_dir", "local_files_only", "force_download", "proxies")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pocket_path() -> Path:
    """The folder of the pocket model."""
    return Path(str(files("adaptprune.assets"))) / "pocket"


def load(
    name_or_path: str | None = None,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Load a vision-language model and its processor.

    Parameters
    ----------
    name_or_path : str, optional
        A Hugging Face name or a folder. None or "pocket": the small model inside the package, which needs no network.
    device : str, optional
        "cpu", "cuda", "cuda:1", "mps". Default: cuda if there is one, then mps, then cpu.
    dtype : str or torch.dtype, optional
        "float32", "float16" or "bfloat16". Default: float32 on the CPU, else what the checkpoint has.
    attn_implementation : str, optional
        "sdpa" (default where the model has it), "eager", "flash_attention_2", "flex_attention".
    **options
        Passed on to `from_pretrained`.

    Returns
    -------
    (model, processor)
        In evaluation mode, on the device.

    Raises
    ------
    AdaptPruneError
        Nothing there, not a supported vision-language model, an unknown device or dtype.
    """
    source = str(pocket_path()) if name_or_path in (None, POCKET) else str(name_or_path)
    place = pick_device(device)
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else "auto"
    elif isinstance(dtype, str):
        dtype = pick_dtype(dtype)
    model, processor = _read(source, dtype=dtype, attn_implementation=attn_implementation, **options)
    processor.tokenizer.padding_side = "left"  # batches are continued at their right end
    return model.to(place).eval(), processor


def _read(source: str, **options: Any) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    try:
        where = {key: options[key] for key in HUB_OPTIONS if key in options}
        config = AutoConfig.from_pretrained(source, **where)
        family_of(config)
        model, found = AutoModelForImageTextToText.from_pretrained(
            source, config=config, output_loading_info=True, **options
        )
        processor = AutoProcessor.from_pretrained(source, **where)
    except AdaptPruneError as error:
        raise AdaptPruneError(f"cannot use {source!r}: {error}") from None
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        raise AdaptPruneError(_why_not(source, error)) from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise AdaptPruneError(
            f"cannot use {source!r}: it lacks {len(missing)} weights ({missing[0]}, ...), which would be random. "
            "Use a complete checkpoint."
        )
    return model, processor


def _why_not(source: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, OSError) and not Path(source).exists():
        return (
            f"cannot load {source!r}: it is neither a folder here nor a model that could be fetched ({reason}). "
            "Leave the model out to use the one inside the package."
        )
    return f"cannot load {source!r}: {reason}"


def pick_device(device: str | None) -> torch.device:
    """The named device, or the best there is; an error that lists what there is if the named one is missing."""
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present = [*(f"cuda:{i}" for i in range(torch.cuda.device_count())), *present]
    if device is None:
        return torch.device(present[0])
    wanted = "cuda:0" if device == "cuda" else device
    if wanted not in present:
        raise AdaptPruneError(f"there is no device {device!r} here. Present: {', '.join(present)}.")
    return torch.device(wanted)


def pick_dtype(name: str) -> torch.dtype:
    """The dtype of that name."""
    if name not in DTYPES:
        raise AdaptPruneError(f"unknown dtype {name!r}.{did_you_mean(name, DTYPES)}")
    return DTYPES[name]
