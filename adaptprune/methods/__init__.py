"""Selection rules, one file each. A new one is a file here and a line in METHODS (or another package's entry point)."""

from __future__ import annotations

from typing import Any

from adaptprune.errors import AdaptPruneError
from adaptprune.pruner import Pruner
from adaptprune.registry import Registry, parse_spec


def _check(name: str, kind: Any) -> None:
    """Raise if what another package registers under `name` is no selection rule."""
    if not (isinstance(kind, type) and issubclass(kind, Pruner)):
        raise AdaptPruneError("it is no subclass of adaptprune.Pruner")
    if kind.name != name:
        raise AdaptPruneError(f"its name is {kind.name!r}: write name = {name!r} in {kind.__name__}")
    try:
        _ = kind().smallest_layer
    except TypeError as error:
        raise AdaptPruneError(f"it cannot be made without options, each needs a default ({error})") from None


METHODS = Registry(
    "method",
    {
        "adaptprune": "adaptprune.methods.adaptprune:AdaptPrune",
        "adaptprune-plus": "adaptprune.methods.adaptprune_plus:AdaptPrunePlus",
        "fastv": "adaptprune.methods.fastv:FastV",
        "sparsevlm": "adaptprune.methods.sparsevlm:SparseVLM",
        "sparsevlm-v2": "adaptprune.methods.sparsevlm_v2:SparseVLM2",
        "pyramiddrop": "adaptprune.methods.pyramiddrop:PyramidDrop",
        "dart": "adaptprune.methods.dart:DART",
        "priortr": "adaptprune.methods.priortr:PriorTR",
        "sieve": "adaptprune.methods.sieve:SIEVE",
        "vlm-pruner": "adaptprune.methods.vlm_pruner:VLMPruner",
        "v2drop": "adaptprune.methods.v2drop:V2Drop",
        "deft": "adaptprune.methods.deft:DeFT",
        "visionzip": "adaptprune.methods.visionzip:VisionZip",
        "fastervlm": "adaptprune.methods.fastervlm:FasterVLM",
        "vispruner": "adaptprune.methods.vispruner:VisPruner",
        "prumerge": "adaptprune.methods.prumerge:PruMerge",
        "prumerge-plus": "adaptprune.methods.prumerge:PruMergePlus",
        "holov": "adaptprune.methods.holov:HoloV",
        "hired": "adaptprune.methods.hired:HiRED",
        "nuwa": "adaptprune.methods.nuwa:Nuwa",
        "tome": "adaptprune.methods.tome:ToMe",
        "hawk": "adaptprune.methods.hawk:Hawk",
        "adaptprune-encoder": "adaptprune.methods.adaptprune_encoder:AdaptPruneEncoder",
        "evs": "adaptprune.methods.evs:EVS",
        "vidcom2": "adaptprune.methods.vidcom2:VidCom2",
        "random": "adaptprune.methods.random:Random",
        "grid": "adaptprune.methods.grid:Grid",
        "pool": "adaptprune.methods.pool:Pool",
        "divprune": "adaptprune.methods.divprune:DivPrune",
        "cenprune": "adaptprune.methods.cenprune:CenPrune",
        "cdpruner": "adaptprune.methods.cdpruner:CDPruner",
        "otprune": "adaptprune.methods.otprune:OTPrune",
        "scope": "adaptprune.methods.scope:Scope",
        "eadp": "adaptprune.methods.eadp:EADP",
        "tops": "adaptprune.methods.tops:TOPS",
        "zooprune": "adaptprune.methods.zooprune:ZOOPrune",
    },
    group="adaptprune.methods",
    check=_check,
)


def list_methods() -> list[str]:
    """The names that `make_pruner` and `adaptprune.prune` take; of other packages, those that can be imported."""
    return METHODS.usable()


def make_pruner(method: str | Pruner, **options: Any) -> Pruner:
    """A pruner from a spec string or another pruner, with some of its options changed.

    Parameters
    ----------
    method : str or Pruner
        ``"adaptprune"``, ``"fastv:keep_ratio=0.25,layer=3"`` or an object.
    **options
        Fields of the pruner; they win over those of the spec. None means "not given".

    Raises
    ------
    AdaptPruneError
        Unknown method or option (with the closest name), or a value that is not allowed.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if isinstance(method, Pruner):
        return method.replace(**given) if given else method
    if not isinstance(method, str):
        raise AdaptPruneError(
            f"method is a {type(method).__name__}: pass a name ({', '.join(list_methods())}), a spec string such as "
            "'adaptprune:keep_ratio=0.1', or a Pruner object."
        )
    name, spec_options = parse_spec(method)
    pruner: Pruner = METHODS.get(name)()
    return pruner.replace(**{**spec_options, **given})
