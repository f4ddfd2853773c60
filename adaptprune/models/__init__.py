"""Getting a model and its processor: Hugging Face checkpoints, and the pocket model inside the package."""

from adaptprune.models.loading import POCKET, load, notice

__all__ = ["POCKET", "load", "notice"]
