"""The architectures that the recipe makes, behind one small interface."""

from pocket.architectures.base import Architecture
from pocket.architectures.llava import Llava
from pocket.architectures.qwen import Qwen

ARCHITECTURES: dict[str, Architecture] = {one.name: one for one in (Llava(), Qwen())}

__all__ = ["ARCHITECTURES", "Architecture"]
