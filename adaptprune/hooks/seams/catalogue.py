"""Which models the installed transformers has."""

from __future__ import annotations

from typing import Any


def has_model_type(model_type: str) -> bool:
    """Whether transformers has a model of this `config.model_type`, of its own or registered with its AutoConfig."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def image_text_types() -> tuple[str, ...]:
    """The model types that the installed transformers loads for prompts of pictures and text, sorted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return tuple(sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))


def loads_as_image_text(config: Any) -> bool:
    """Whether transformers loads a model with this config for prompts of pictures and text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
