"""What answers conversations: one engine per runtime. Front ends talk to engines, never to models."""

from typing import TYPE_CHECKING

from adaptprune.lazily import attributes

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

__getattr__ = attributes(__name__, _HOMES)
