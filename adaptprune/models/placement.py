"""Where a model goes and in which precision: device or device map, dtype, attention, 4 or 8 bit. Reads no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams import parts
from adaptprune.registry import did_you_mean

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Strategies of accelerate that may stand in place of a map from modules to devices.
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")

#: How many numbers bitsandbytes quantises together in 4 bit.
FOUR_BIT_BLOCK = 64


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


@dataclass(frozen=True)
class Placement:
    """What was asked for, checked; see `load` for what each field means.

    Attributes
    ----------
    device : torch.device or None
        None if a device map spreads the model.
    device_map : str, dict or None
        One of `DEVICE_MAPS`, or module names to devices.
    dtype : torch.dtype or "auto"
    attention : str or None
    bits : int
        4 or 8 for bitsandbytes, 0 for the weights as they are.
    """

    device: torch.device | None
    device_map: str | dict[str, Any] | None
    dtype: torch.dtype | str
    attention: str | None
    bits: int

    @classmethod
    def of(
        cls,
        device: str | None,
        device_map: str | Mapping[str, Any] | None,
        dtype: str | torch.dtype | None,
        attention: str | None,
        load_in_4bit: bool,
        load_in_8bit: bool,
    ) -> Placement:
        """Check the options of `load` before anything is read."""
        if device is not None and device_map is not None:
            raise AdaptPruneError(
                f"device={device!r} and device_map={device_map!r} exclude each other: a map says where every part "
                "goes. Leave one out."
            )
        if load_in_4bit and load_in_8bit:
            raise AdaptPruneError("load_in_4bit and load_in_8bit exclude each other: leave one out.")
        place = None if device_map is not None else pick_device(device)
        if dtype is None:
            dtype = torch.float32 if place is not None and place.type == "cpu" else "auto"
        elif isinstance(dtype, str):
            dtype = pick_dtype(dtype)
        _check_attention(attention)
        bits = 4 if load_in_4bit else 8 if load_in_8bit else 0
        if bits:
            _check_quantization(place, bits)
        return cls(place, _device_map(device_map), dtype, attention, bits)

    def options(self, config: Any) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained` for a model with this config."""
        options: dict[str, Any] = {"dtype": self.dtype, "attn_implementation": self.attention}
        if self.device_map is not None:
            options["device_map"] = self.device_map
        if self.bits:
            options["quantization_config"] = self._quantization(config)
        if self.bits or getattr(config, "quantization_config", None) is not None:
            options.setdefault("device_map", {"": self.device})  # what is quantised cannot be moved later
        return options

    def settle(self, model: Any) -> Any:
        """The model in evaluation mode on its device, where a device map or a quantiser has not put it already."""
        if self.device_map is None and getattr(model, "hf_quantizer", None) is None:
            model = model.to(self.device)
        return model.eval()

    def _quantization(self, config: Any) -> Any:
        from transformers import BitsAndBytesConfig

        if getattr(config, "quantization_config", None) is not None:
            raise AdaptPruneError(
                f"the checkpoint is quantised already: leave out load_in_{self.bits}bit, it is loaded as it is."
            )
        skip = outside_of_decoder(config)
        if self.bits == 8:
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
        if self.device is not None and self.device.type == "cpu":
            _check_widths(config)
        compute = self.dtype if isinstance(self.dtype, torch.dtype) else _own_dtype(config)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=skip,
        )


def packs_four_bits() -> bool:
    """Whether bitsandbytes packs 4-bit weights anew for this CPU, whose bfloat16 kernel takes blocks of 64 only."""
    from bitsandbytes import functional

    packs = getattr(functional, "has_avx512bf16", None)
    return bool(packs is not None and packs())


def _check_widths(config: Any) -> None:
    """Refuse by name what bitsandbytes would refuse with a shape in the first forward."""
    text = parts.text_config(config)
    widths = {getattr(text, name, None) for name in ("hidden_size", "intermediate_size")}
    odd = sorted(width for width in widths if width is not None and width % FOUR_BIT_BLOCK)
    if odd and packs_four_bits():
        raise AdaptPruneError(
            f"load_in_4bit on this CPU takes layers whose widths are multiples of {FOUR_BIT_BLOCK}, and this decoder "
            f"has {', '.join(map(str, odd))}: use load_in_8bit, or no quantisation."
        )


def outside_of_decoder(config: Any) -> list[str]:
    """Names of the parts that hold no decoder layer: vision tower, projector, output head.

    They are a few percent of the weights and see numbers that the decoder does not (pixels, logits), so quantisation
    leaves them alone. Found on an empty model, whatever the family calls them.
    """
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    decoder = parts.parts_of(model).decoder
    path = next(name for name, module in model.named_modules() if module is decoder).split(".")
    skipped, parent, prefix = [], model, ""
    for step in path:
        skipped += [prefix + name for name, _ in parent.named_children() if name != step]
        parent, prefix = parent.get_submodule(step), f"{prefix}{step}."
    return skipped


def _own_dtype(config: Any) -> torch.dtype:
    dtype = getattr(config, "dtype", None) or getattr(parts.text_config(config), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float16


def _device_map(device_map: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    if device_map is None:
        return None
    if isinstance(device_map, str):
        if device_map not in DEVICE_MAPS:
            raise AdaptPruneError(
                f"unknown device_map={device_map!r}.{did_you_mean(device_map, DEVICE_MAPS)} Or give a dict from module "
                "names to devices."
            )
    elif not isinstance(device_map, Mapping) or not device_map:
        raise AdaptPruneError(
            f"device_map={device_map!r} is not allowed: use {', '.join(DEVICE_MAPS)} or a dict from module names to "
            'devices, such as {"": "cuda:0"}.'
        )
    from transformers.utils import is_accelerate_available

    if not is_accelerate_available():
        raise AdaptPruneError("device_map needs accelerate: pip install 'adaptprune[accelerate]'.")
    return device_map if isinstance(device_map, str) else dict(device_map)


def _check_attention(name: str | None) -> None:
    """A misspelt or missing implementation is found before gigabytes are read."""
    if name is None or "/" in name:  # a kernel of the hub, named owner/name
        return
    from transformers.utils import is_flash_attn_2_available

    from adaptprune.hooks.seams.attention import known_implementations

    allowed = known_implementations()
    if name not in allowed:
        raise AdaptPruneError(f"unknown attn_implementation {name!r}.{did_you_mean(name, allowed)}")
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise AdaptPruneError(
            "attn_implementation 'flash_attention_2' needs an NVIDIA or AMD GPU and the package flash-attn: "
            "pip install flash-attn --no-build-isolation. Or use 'sdpa', which needs neither."
        )


def _check_quantization(place: torch.device | None, bits: int) -> None:
    from transformers.utils import is_accelerate_available, is_bitsandbytes_available

    if not (is_bitsandbytes_available() and is_accelerate_available()):
        raise AdaptPruneError(f"load_in_{bits}bit needs bitsandbytes and accelerate: pip install 'adaptprune[quant]'.")
    import bitsandbytes

    supported = sorted(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))
    if place is not None and place.type not in supported:
        raise AdaptPruneError(
            f"load_in_{bits}bit does not work on {place.type!r}: bitsandbytes {bitsandbytes.__version__} knows "
            f"{', '.join(supported)}. Use another device, or dtype='float16' without it."
        )
