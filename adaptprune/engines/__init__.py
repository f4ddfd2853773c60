"""What answers conversations: one engine per runtime. Front ends talk to engines, never to models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptprune.engines.local import LocalEngine
    from adaptprune.engines.protocol import Answer, Engine, Pruning
    from adaptprune.engines.remote import RemoteEngine
    from adaptprune.engines.sampling import Sampling

_HOMES = {
    "Answer": "protocol",
    "Engine": "protocol",
    "LocalEngine": "local",
    "Pruning": "protocol",
    "RemoteEngine": "remote",
    "Sampling": "sampling",
}
__all__ = ["Answer", "Engine", "LocalEngine", "Pruning", "RemoteEngine", "Sampling"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
