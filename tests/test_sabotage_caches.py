"""KV caches of another make, or that somebody else wrote to between two forwards."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, StaticLayer

import adaptprune
from adaptprune import AdaptPruneError
from tests.sabotage import broken, dressed, fresh, inputs, layers_of, step
from tests.test_sabotage_forwards import calls


class OtherLayer(DynamicLayer):
    """Somebody's own, which may do anything."""


class QuantisedLayer(DynamicLayer):
    is_quantized = True


@pytest.mark.parametrize("number", [0, 3, 4])
@pytest.mark.parametrize("kind", [OtherLayer, QuantisedLayer])
@calls("own cache", "step", "step alone", "turn")
def test_a_layer_of_another_class(number, kind, call):
    def work(model, cache):
        layer = kind()
        layer.__dict__.update(vars(cache.layers[number]))
        cache.layers[number] = layer

    broken(work, call, says=f"DynamicCache cannot be pruned, its {kind.__name__}s", versions=False)


@pytest.mark.parametrize("number", [0, 3])
@calls("own cache")
def test_a_static_layer(number, call):
    def work(model, cache):
        cache.layers[number] = StaticLayer(200)

    broken(work, call, says="DynamicCache cannot be pruned, its StaticLayers", versions=False)


class Duck:
    """Quacks like a cache and is none."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


@torch.no_grad()
def test_what_is_no_cache():
    model = fresh()
    with adaptprune.prune(model, "fastv", keep_ratio=0.25):
        model(**inputs(), past_key_values=DynamicCache(config=model.config.text_config))
        duck = Duck(DynamicCache(config=model.config.text_config))
        with pytest.raises(AdaptPruneError, match="Duck cannot be pruned"):
            model(**inputs(), past_key_values=duck)
        filled = Duck(model(**inputs()).past_key_values)
        with pytest.raises(AdaptPruneError):
            step(model, filled)


def keeping(change):
    """An `update` that stores something else than it hands out."""

    def update(layer):
        inner = layer.update

        def other(*states, **kwargs):
            found = inner(*states, **kwargs)
            layer_now = other.holder()
            layer_now.keys, layer_now.values = change(layer_now.keys), change(layer_now.values)
            return found

        other.holder = lambda: layer
        return other

    return update


CHANGES = {
    "too few": lambda states: states[:, :, 1:],
    "too many": lambda states: torch.cat([states, states[:, :, -1:]], dim=2),
    "none": lambda states: states[:, :, :0],
}


@pytest.mark.parametrize("number", [0, 1, 2, 4])
@pytest.mark.parametrize("change", CHANGES)
@calls("own cache", "step", "step alone")
def test_a_layer_that_keeps_other_keys_than_it_was_handed(number, change, call):
    def work(model, cache):
        cache.layers[number].update = keeping(CHANGES[change])(cache.layers[number])

    broken(work, call, says=f"layer {number} holds \\d+ keys instead of the \\d+ that were kept")


@pytest.mark.parametrize("number", [0, 2, 4])
@calls("step", "step alone", "turn")
def test_keys_that_somebody_took_away_in_between(number, call):
    def work(model, cache):
        layer = cache.layers[number]
        layer.keys, layer.values = layer.keys[:, :, :-3], layer.values[:, :, :-3]

    broken(work, call, versions=False)


@calls("step", "step alone", "turn")
def test_layers_of_a_cache_in_another_order(call):
    broken(lambda model, cache: cache.layers.reverse(), call, versions=False)


@calls("step", "step alone", "turn")
def test_the_state_was_deleted_from_the_cache(call):
    def work(model, cache):
        for name in [name for name in vars(cache) if "adaptprune" in name]:
            delattr(cache, name)

    broken(work, call, says="the KV cache holds pruned layers, and nothing is known of what they dropped")


@calls("step", "turn")  # without padding there is no mask, and what comes of it is right
def test_the_keys_were_copied_into_a_plain_cache(call):
    """As a conversion to another format and back does: its layers do not know that they hold less."""

    def work(model, cache):
        for name in [name for name in vars(cache) if "adaptprune" in name]:
            delattr(cache, name)
        plain = DynamicCache()
        for number, layer in enumerate(cache.layers):
            plain.update(layer.keys, layer.values, number)
        cache.layers = plain.layers

    broken(work, call, versions=False)


@calls("step", "step alone", "turn")
def test_a_cache_that_counts_what_it_holds(call):
    def work(model, cache):
        dressed(cache, get_seq_length=lambda self, layer_idx=0: self.layers[-1].keys.shape[-2])

    broken(work, call, versions=False)


@pytest.mark.parametrize("numbers", [[3], [0, 1, 2, 3, 4]])
@calls("own cache", "prompt", "generate")
def test_layers_that_fill_a_cache_of_their_own(numbers, call):
    def work(model):
        own = DynamicCache()
        for number in numbers:
            kind = type(layers_of(model)[number])

            def forward(self, hidden_states, kind=kind, **kwargs):
                kwargs = {key: own if key in ("cache", "past_key_values") else value for key, value in kwargs.items()}
                return kind.forward(self, hidden_states, **kwargs)

            layers_of(model)[number].forward = forward.__get__(layers_of(model)[number])

    broken(work, call, says="holds 0 keys instead of")


@calls("prompt", "own cache")
def test_the_decoder_returns_another_cache(call):
    def work(model):
        decoder = model.model.language_model
        kind = type(decoder)

        def forward(self, *args, **kwargs):
            out = kind.forward(self, *args, **kwargs)
            for name, value in list(out.items()):
                if isinstance(value, DynamicCache):
                    out[name] = copy.deepcopy(value)
            return out

        decoder.forward = forward.__get__(decoder)

    broken(work, call, says="returned a KV cache that its layers were not seen to be handed")


@calls("prompt", "generate")
def test_a_cache_that_is_handed_on_in_a_box(call):
    """Nothing among a layer's arguments is a cache any more."""

    def work(model):
        for layer in layers_of(model):
            kind = type(layer)

            def call_it(self, hidden_states, kind=kind, cache=None, past_key_values=None, **kwargs):
                return kind.__call__(self, hidden_states, box=[cache, past_key_values], **kwargs)

            def forward(self, hidden_states, box=(None, None), kind=kind, **kwargs):
                name = "cache" if box[0] is not None else "past_key_values"
                return kind.forward(self, hidden_states, **{name: box[0] or box[1]}, **kwargs)

            dressed(layer, __call__=call_it, forward=forward)
        forget(model)

    def forget(model):
        """The decoder makes its cache itself, and takes none."""
        decoder = model.model.language_model
        kind = type(decoder)

        def call_it(self, *args, cache=None, past_key_values=None, **kwargs):
            return kind.__call__(self, *args, **kwargs)

        dressed(decoder, __call__=call_it)

    broken(work, call, versions=False)


@torch.no_grad()
def test_a_pruned_cache_is_continued_as_it_was_filled():
    model = fresh()

    def filled(spec="fastv", **options):
        with adaptprune.prune(model, spec, keep_ratio=0.25, **options):
            return model(**inputs()).past_key_values

    with adaptprune.prune(model, "fastv", keep_ratio=0.25):
        step(model, filled_by(model))
    for spec in ("fastv:layer=3", "fastv:layer=1", "random:layer=0"):
        cache = filled()
        with adaptprune.prune(model, spec, keep_ratio=0.25), pytest.raises(AdaptPruneError, match="same layers"):
            step(model, cache)
    for words in (1, 4):
        with pytest.raises(AdaptPruneError, match="filled under pruning, and the model is not pruned now"):
            model(input_ids=torch.full((2, words), 7), past_key_values=filled())
    with pytest.raises(AdaptPruneError, match="filled under pruning, and the model is not pruned now"):
        model.generate(input_ids=inputs()["input_ids"], past_key_values=filled(), max_new_tokens=2)
    other = fresh()
    with pytest.raises(AdaptPruneError, match="filled under pruning, and the model is not pruned now"):
        step(other, filled())


def filled_by(model):
    return model(**inputs()).past_key_values


@torch.no_grad()
def test_rows_that_are_not_the_batch_any_more():
    model = fresh()
    with adaptprune.prune(model, "fastv", keep_ratio=0.25):
        cache = filled_by(model)
        with pytest.raises(AdaptPruneError, match="a batch of 2 prompts and is continued with 1"):
            model(input_ids=torch.tensor([[7]]), past_key_values=cache)
        for layer in cache.layers:  # past the methods that say so
            layer.keys, layer.values = layer.keys[1:], layer.values[1:]
        with pytest.raises(AdaptPruneError, match="a batch of 2 prompts and is continued with 1"):
            model(input_ids=torch.tensor([[7]]), past_key_values=cache)
