"""What is installed, and what works with it: the parts that everything needs, and every family on a tiny model."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterable
from typing import Any

from adaptprune._version import __version__
from adaptprune.errors import first_line
from adaptprune.hooks.seams import versions as releases
from adaptprune.installed import version_of

NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "numba", "pillow", "typer", "rich")
#: The packages of the extras, in the order of pyproject.toml, and what other options and engines use.
OPTIONAL = (
    "accelerate",
    "matplotlib",
    "pyarrow",
    "openpyxl",
    "openai",
    "anyio",
    "sentencepiece",
    "protobuf",
    "peft",
    "lmms-eval",
    "tqdm",
    "bitsandbytes",
    "fastapi",
    "uvicorn",
    "httpx",
    "llguidance",
    "prometheus-client",
    "pydantic",
    "smg",
    "gradio",
    "torchvision",
    "flash-attn",
    "vllm",
    "ray",
)


def examine(
    *, models: bool = True, watch: Callable[[list[str]], Iterable[str]] = iter, skipped: str = "models=False was given"
) -> dict[str, Any]:
    """Everything that `adaptprune doctor` tells.

    Parameters
    ----------
    models : bool
        Try every family on a tiny model, which takes some seconds (`adaptprune.testing.selfcheck`).
    watch : callable
        Is handed the names of what is tried and hands them on one by one: for a progress bar.
    skipped : str
        What is said of the models without `models`.

    Returns
    -------
    dict of plain data
        Versions, devices, optional parts; `checks` (None: passed; otherwise the reason); `transformers`: what is known
        of the installed release; `models`: an outcome each (see `Outcome`), or None and the reason in
        `models_skipped`; `seams`: what is assumed about transformers, and each way in which it is met, by which models.
    """
    imports = _passes(_imports)
    found: dict[str, Any] = {
        "versions": {
            "adaptprune": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: version_of(name) or "not installed" for name in NEEDED},
        },
        "transformers": {
            "installed": releases.installed(),
            "window": [releases.OLDEST, releases.NEWEST],
            "tested": releases.is_tested(),
            "judgement": releases.judgement(),
        },
        "devices": [],
        "optional": {name: version_of(name) for name in OPTIONAL},
        "checks": {"torch and transformers": imports},
        "models": None,
        "models_skipped": skipped,
        "seams": {},
    }
    if imports is not None:  # all the rest needs them
        return {**found, "models_skipped": "torch and transformers cannot be imported"}
    found["devices"] = _devices()
    found["checks"] |= {"compiled selection": _passes(_selection), "pocket model": _passes(_pocket)}
    if models:
        found |= {"models": _models(watch), "models_skipped": None}
        found["seams"] = _seams(found["models"])
    found["checks"] |= _plugins()
    return found


def works(found: dict[str, Any]) -> bool:
    """Whether nothing of what `examine` found is amiss. A model that is not there, or an untested release, is not."""
    failed = [model for model in found["models"] or () if model["status"] == "failed"]
    return not failed and not any(found["checks"].values())


def _devices() -> list[str]:
    import torch

    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, f"cpu ({torch.get_num_threads()} threads)"]


def _models(watch: Callable[[list[str]], Iterable[str]]) -> list[dict[str, Any]]:
    from adaptprune.testing import selfcheck

    return [dataclasses.asdict(selfcheck.check(name)) for name in watch(selfcheck.names())]


def _seams(models: list[dict[str, Any]]) -> dict[str, Any]:
    from adaptprune.hooks.seams import SEAMS

    seams: dict[str, Any] = {seam.name: {"what": seam.what, "found": {}} for seam in SEAMS}
    for model in models:
        for met in model["seams"].values():
            for name, finding in met.items():
                who = seams[name]["found"].setdefault(finding, [])
                if model["name"] not in who:
                    who.append(model["name"])
    return seams


def _plugins() -> dict[str, str | None]:
    """A check for each thing of another package that cannot be used, or one for all if there is none."""
    from adaptprune.eval.task import TASKS
    from adaptprune.families import FAMILIES
    from adaptprune.methods import METHODS

    broken = {
        f"plug-in {registry.kind} {name}": problem
        for registry in (METHODS, FAMILIES, TASKS)
        for name, problem in registry.problems().items()
    }
    return dict(broken) or {"plug-ins": None}


def _passes(check: Callable[[], None]) -> str | None:
    try:
        check()
    except Exception as error:  # whatever it is, it is what the user has to read
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _imports() -> None:
    import torch  # noqa: F401

    from adaptprune.hooks.seams import SEAMS  # noqa: F401  # brings all of transformers that pruning stands on


def _selection() -> None:
    import torch

    from adaptprune.ops import adaptive_nms

    coords = torch.cartesian_prod(torch.arange(1), torch.arange(3), torch.arange(3))[None]
    arguments = torch.linspace(0, 1, 9)[None], torch.eye(9)[None], coords, 4
    if not torch.equal(adaptive_nms(*arguments, backend="numba"), adaptive_nms(*arguments, backend="reference")):
        raise RuntimeError("the compiled selection and its reference disagree")


def _pocket() -> None:
    from adaptprune.models.loading import pocket_path

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (pocket_path() / name).is_file():
            raise FileNotFoundError(f"{name} is missing: install the package again")
