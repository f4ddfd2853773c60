"""The options with which every command that loads a model loads it, written once."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

import typer

from adaptprune.errors import AdaptPruneError

#: Option of the command line: argument of `adaptprune.load`, type, option.
OPTIONS: dict[str, tuple[str, type, Any]] = {
    "model": (
        "name_or_path",
        str,
        typer.Option(None, help="Hugging Face name or folder. Default: the pocket model inside the package."),
    ),
    "model_base": ("model_base", str, typer.Option(None, help="What a LoRA adapter or a projector was trained on.")),
    "vision_tower": (
        "vision_tower",
        str,
        typer.Option(None, help="Folder of the CLIP tower, for checkpoints in the original LLaVA layout."),
    ),
    "load_4bit": ("load_in_4bit", bool, typer.Option(False, "--load-4bit", help="Decoder layers in 4 bit.")),
    "load_8bit": ("load_in_8bit", bool, typer.Option(False, "--load-8bit", help="Decoder layers in 8 bit.")),
    "device": ("device", str, typer.Option(None, help="cpu, cuda, cuda:1, mps. Default: the best present.")),
    "device_map": (
        "device_map",
        str,
        typer.Option(None, help="Spread the model: auto, balanced, sequential, or JSON from modules to devices."),
    ),
    "dtype": ("dtype", str, typer.Option(None, help="float32, float16 or bfloat16.")),
    "attention": (
        "attn_implementation",
        str,
        typer.Option(None, help="sdpa, eager, flash_attention_2, flex_attention."),
    ),
}


def say_notice(model: Any) -> None:
    """Say on stderr what people should know of a model, if there is anything."""
    from adaptprune.models import notice

    if text := notice(model):
        print(text, file=sys.stderr, flush=True)


def loading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` these options in place of its parameter `loading`, which gets the arguments of `load`.

    An option that the command has itself (several models, say) is left to it.
    """
    own = inspect.signature(command, eval_str=True)
    options = {name: option for name, option in OPTIONS.items() if name not in own.parameters}
    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        if parameter.name != "loading":
            parameters.append(parameter)
            continue
        for name, (_, kind, option) in options.items():
            parameters.append(inspect.Parameter(name, parameter.kind, default=option, annotation=kind))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        loading = {argument: values.pop(name) for name, (argument, _, _) in options.items()}
        loading["device_map"] = _device_map(loading["device_map"])
        command(**values, loading=loading)

    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _device_map(text: str | None) -> Any:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise AdaptPruneError(f"--device-map {text!r} is not JSON ({error}).") from None
