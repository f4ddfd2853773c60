"""Which kinds of model have passed the self-check, on this machine: in memory, and on disk.

A result holds for the versions, the model's config, the attention backend, the layers before which tokens leave,
whether positions are packed behind them, and the code: the source of its classes, and what else was put on its decoder
and layers. Not for weights or a dtype.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptprune._version import __version__
from adaptprune.hooks.seams import Parts, attention
from adaptprune.hooks.seams.versions import installed

#: The environment variable that names the folder; otherwise it is adaptprune's in the user's cache.
HOME = "ADAPTPRUNE_CACHE"
#: What has passed in this process.
_here: set[str] = set()


def key(found: Parts, stages: tuple[int, ...], packed: bool = False) -> str:
    """What a result holds for, as 64 letters."""
    whole: Any = found.model.config
    config = {name: value for name, value in whole.to_dict().items() if name != "_name_or_path"}
    modules = [found.model, found.base, found.decoder, *(part for layer in found.layers for part in layer.modules())]
    facts = [
        __version__,
        installed(),
        torch.__version__,
        attention.backend(found.decoder),
        [*stages, packed],
        json.dumps(config, sort_keys=True, default=str),
        sorted({_code(type(module)) for module in modules}),  # type: ignore[arg-type]
        sorted({each for module in modules for each in _added(module)}),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@cache
def _code(kind: type) -> str:
    """A class's name and, if it can be had, its source."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        source = ""
    return f"{kind.__module__}.{kind.__qualname__} {hashlib.sha256(source.encode()).hexdigest()}"


def _added(module: nn.Module) -> list[str]:
    """What was put on a module besides its class: a forward of its own, hooks."""
    own = [module.__dict__["forward"]] if "forward" in module.__dict__ else []
    return [_function(each) for each in (*own, *module._forward_pre_hooks.values(), *module._forward_hooks.values())]


def _function(function: Any) -> str:
    inner = getattr(function, "func", function)
    code = getattr(inner, "__code__", None)
    text = "" if code is None else hashlib.sha256(code.co_code + repr(code.co_consts).encode()).hexdigest()
    return f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__qualname__)} {text}"


def knows(key: str) -> bool:
    """Whether a kind of model has passed."""
    return key in _here or key in _on_disk()


def remember(key: str) -> None:
    """Note that a kind of model has passed."""
    _here.add(key)
    with contextlib.suppress(OSError, RuntimeError):  # no place to write: it is checked again next time
        path = _file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(sorted({*_on_disk(), key}), file)
        os.replace(file.name, path)


def _file() -> Path:
    home = os.environ.get(HOME) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptprune"
    return Path(home) / "selfcheck.json"


def _on_disk() -> set[str]:
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        found = json.loads(_file().read_text())
        if isinstance(found, list):
            return {each for each in found if isinstance(each, str) and len(each) == 64}
    return set()
