"""Seams that are not where they are looked for: each is named at `prune()`, before any answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlavaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from tests.sabotage import broken, dressed, layers_of, renaming


def cache_argument() -> str:
    import inspect

    return "cache" if "cache" in inspect.signature(LlamaDecoderLayer.forward).parameters else "past_key_values"


def missing(name: str) -> property:
    def get(self):
        raise AttributeError(name)

    return property(get)


def no_layers(model):
    decoder = model.model.language_model
    decoder.blocks = decoder.layers
    del decoder.layers


def layers_in_a_list(model):
    decoder = model.model.language_model
    layers = list(decoder.layers)
    del decoder.layers
    object.__setattr__(decoder, "layers", layers)


def no_layer_at_all(model):
    model.model.language_model.layers = nn.ModuleList()


def no_decoder(model):
    model.model.narrator = model.model.language_model
    del model.model.language_model


def no_encoder(model):
    for each in (model, model.model):
        dressed(each, get_image_features=missing("get_image_features"))


def an_encoder_of_nothing(model):
    dressed(model.model, get_image_features=lambda self: None)


def no_placeholder(model):
    dressed(model.config, image_token_index=missing("image_token_index"))  # which `image_token_id` stands for


def no_embeddings(model):
    dressed(model.model, get_input_embeddings=missing("get_input_embeddings"))


def attention_without_config(model):
    del layers_of(model)[1].self_attn.config


def a_config_without_a_backend(model):
    layers_of(model)[1].self_attn.config = object()


def no_attention(model):
    layers_of(model)[1].gaze = layers_of(model)[1].self_attn
    del layers_of(model)[1].self_attn


def renamed_in_one_layer(model):
    dressed(layers_of(model)[3], **renaming(cache_argument(), "memory", LlamaDecoderLayer))


def renamed_in_all_layers(model):
    for layer in layers_of(model):
        dressed(layer, **renaming(cache_argument(), "memory", LlamaDecoderLayer))


def renamed_in_the_decoder(model):
    dressed(model.model.language_model, **renaming(cache_argument(), "memory", LlamaModel))


def renamed_states(model):
    dressed(layers_of(model)[4], **renaming("hidden_states", "x", LlamaDecoderLayer))


def renamed_mask(model):
    dressed(layers_of(model)[2], **renaming("attention_mask", "bias", LlamaDecoderLayer))


def no_positions(model):
    def forward(self, hidden_states, attention_mask=None, cache=None, past_key_values=None, **kwargs):
        return LlamaDecoderLayer.forward(self, hidden_states, attention_mask=attention_mask, **kwargs)

    dressed(layers_of(model)[2], forward=forward)


def nothing_prepared(model):
    dressed(model, prepare_inputs_for_generation=missing("prepare_inputs_for_generation"))


SEAMS = {
    no_layers: "the decoder's layers: .*has no list of layers",
    layers_in_a_list: "the decoder's layers",
    no_layer_at_all: "the decoder's layers",
    no_decoder: "the decoder: .*has none of language_model",
    no_encoder: "the image encoder: .*has no get_image_features",
    an_encoder_of_nothing: "the image encoder: .*takes no pictures",
    no_placeholder: "the placeholder: .*sets none of image_token_id",
    no_embeddings: "the token embeddings: .*has no get_input_embeddings",
    attention_without_config: "the attention interface: .*has no config",
    a_config_without_a_backend: "the attention interface: .*has no config that names its backend",
    renamed_in_one_layer: "the cache's argument",
    renamed_in_all_layers: "the cache's argument",
    renamed_in_the_decoder: "the cache's argument",
    renamed_states: "a layer's arguments: .*takes no hidden_states",
    renamed_mask: "a layer's arguments: .*takes no attention_mask",
    no_positions: "a layer's arguments: .*position",
    nothing_prepared: "generate\\(\\)'s forwards: .*has no prepare_inputs_for_generation",
}


@pytest.mark.parametrize("work", SEAMS, ids=lambda work: work.__name__)
def test_a_seam_that_is_not_there_is_named(work):
    broken(work, "prompt", early=True, says=SEAMS[work])


def no_keys(model):
    attention = layers_of(model)[2].self_attn
    attention.key = attention.k_proj
    del attention.k_proj


def no_norm(model):
    layer = layers_of(model)[2]
    layer.scaling = layer.input_layernorm
    del layer.input_layernorm


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (no_attention, "attention: .*1 has keys in its cache, and none of self_attn"),
        (no_keys, "looks at layer 2, which has no keys of its own"),
        (no_norm, "has none of input_layernorm"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_part_that_a_rule_needs_is_named(work, says):
    broken(work, "prompt", "adaptprune", early=True, says=says, versions=False)


def test_an_interface_that_works_otherwise(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    import adaptprune
    from tests.sabotage import fresh

    monkeypatch.setattr(type(ALL_ATTENTION_FUNCTIONS), "get_interface", None)
    with pytest.raises(adaptprune.AdaptPruneError, match="the attention interface.*tested with transformers"):
        adaptprune.prune(fresh(), "fastv")
    monkeypatch.undo()
    adaptprune.prune(fresh(), "fastv").remove()


def test_cache_layers_of_another_make(monkeypatch):
    """Keys that do not grow by concatenation, or a length that counts otherwise."""
    from transformers.cache_utils import DynamicLayer

    import adaptprune
    from tests.sabotage import fresh

    monkeypatch.setattr(DynamicLayer, "get_seq_length", lambda self: 7)
    with pytest.raises(adaptprune.AdaptPruneError, match="the cache's layers: .*reports 7.*tested with transformers"):
        adaptprune.prune(fresh(), "random")
    monkeypatch.undo()
    adaptprune.prune(fresh(), "random").remove()


def test_nothing_is_left_on_a_model_that_was_refused():
    from adaptprune import AdaptPruneError, prune
    from tests.sabotage import fresh

    model = fresh()
    attention = layers_of(model)[1].self_attn
    config = attention.config
    del attention.config
    with pytest.raises(AdaptPruneError):
        prune(model, "fastv")
    attention.config = config
    before = {id(hook) for module in model.modules() for hook in module._forward_pre_hooks.values()}
    with torch.no_grad(), prune(model, "fastv") as report:
        from tests.sabotage import inputs

        model(**inputs())
    assert report.num_kept > 0
    assert {id(hook) for module in model.modules() for hook in module._forward_pre_hooks.values()} == before
    assert isinstance(model.model, LlavaModel)
