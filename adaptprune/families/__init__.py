"""Visual layouts: where a model's visual tokens stand in its prompt and on which grid.

`Generic` finds that for any model whose arguments say it; a family file overrides what they do not. A model type that
is to be known by name has a row in TYPES (`types`), or an entry point of another package, under its `model_type`.
"""

from __future__ import annotations

from typing import Any

from adaptprune.errors import AdaptPruneError
from adaptprune.families.base import Family, Layout, join
from adaptprune.families.types import CHECKED, REFUSED, TYPES
from adaptprune.registry import Registry


def _check(name: str, kind: Any) -> None:
    """Raise if what another package registers is no family."""
    if not (isinstance(kind, type) and issubclass(kind, Family)):
        raise AdaptPruneError("it is no subclass of adaptprune.families.Family")


FAMILIES = Registry(
    "family",
    {name: f"adaptprune.families.{row.family}" for name, row in TYPES.items()},
    group="adaptprune.families",
    check=_check,
)

__all__ = [
    "CHECKED",
    "FAMILIES",
    "REFUSED",
    "TYPES",
    "Family",
    "Layout",
    "check_there",
    "family_of",
    "is_tested",
    "join",
    "list_families",
    "missing",
    "since",
    "why_refused",
]


def list_families() -> list[str]:
    """The values of `config.model_type` that are known by name: tested ones, and those of other packages.

    Others are tried by their structure, and `prune` checks whether that works.
    """
    return FAMILIES.names()


def is_tested(config: Any) -> bool:
    """Whether models of this type, with a decoder of this type, are tested with the installed transformers."""
    from adaptprune.families.outcomes import read
    from adaptprune.hooks.seams.parts import text_config
    from adaptprune.hooks.seams.versions import reaches

    model_type = getattr(config, "model_type", None)
    if model_type not in TYPES or not reaches(TYPES[model_type].since):
        return False
    decoders = read()["types"].get(model_type, {}).get("decoders", ())
    return getattr(text_config(config), "model_type", None) in decoders


def why_refused(model_type: str | None) -> str | None:
    """Why a model type cannot be pruned, and what to do; None if nothing is known against it."""
    reason = REFUSED.get(model_type or "")
    return reason and reason.format(known=", ".join(("qwen3_vl", "gemma3", "internvl")))


def since(model_type: str) -> str | None:
    """The first release of transformers that a model type is tested with; None if it comes from elsewhere."""
    return TYPES[model_type].since if model_type in TYPES else None


def missing(model_type: str) -> str | None:
    """Why a registered model type is not to be had: the installed transformers lacks it. None if it is there."""
    from adaptprune.hooks.seams.catalogue import has_model_type
    from adaptprune.hooks.seams.versions import installed

    needed = since(model_type)
    if needed is None or has_model_type(model_type):
        return None
    return f"not in transformers {installed()}; comes with {needed}"


def check_there(model_type: str) -> None:
    """Raise AdaptPruneError if a model type is registered, but not in the installed transformers."""
    from adaptprune.hooks.seams.versions import requirement

    if model_type in FAMILIES.names() and (reason := missing(model_type)):
        raise AdaptPruneError(
            f"model type {model_type!r} is {reason}: `pip install '{requirement(since(model_type))}'`."
        )


def family_of(config: Any) -> Family:
    """The family of a model's config.

    Raises
    ------
    AdaptPruneError
        A model of that type cannot be pruned (the reason is given), the installed transformers is too old for it, or a
        model with this config cannot be pruned.
    """
    model_type = getattr(config, "model_type", None)
    if (reason := why_refused(model_type)) is not None:
        raise AdaptPruneError(f"model type {model_type!r} cannot be pruned: {reason}.")
    if model_type not in FAMILIES.names():
        from adaptprune.families.generic import Generic

        unknown = Generic()
        unknown.causal = False  # nobody has looked
        return unknown
    check_there(model_type)
    family: Family = FAMILIES.get(model_type)()
    if model_type in TYPES:
        family.causal = TYPES[model_type].causal
    family.check(config)
    return family
