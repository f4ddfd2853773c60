"""Hooks, methods and arguments that go missing while a model is pruned: facts tell, and the answer is withheld."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlavaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.testing.zoo import SPECIMENS
from tests.sabotage import broken, dressed, fresh, inputs, layers_of, renaming, same, unhook
from tests.test_sabotage import cache_argument

GONE = "was changed or taken away while the model is pruned|hook before its decoder did not"
EVERY = ["prompt", "own cache", "uncached", "step", "step alone", "generate", "turn"]


def calls(*names: str):
    return pytest.mark.parametrize("call", names or EVERY)


@pytest.mark.parametrize("number", [2, 4])
@calls(*EVERY, "generate uncached")
def test_one_layers_hooks(number, call):
    broken(lambda model: unhook(layers_of(model)[number]), call, says=GONE)


@calls()
def test_all_layers_hooks(call):
    broken(lambda model: [unhook(layer) for layer in layers_of(model)], call, says=GONE)


@calls()
def test_the_decoders_hooks(call):
    broken(lambda model: unhook(model.model.language_model), call, says=GONE)


@calls()
def test_the_decoders_first_hook(call):
    broken(lambda model: unhook(model.model.language_model, after=False), call)


@calls()
def test_the_decoders_last_hook(call):
    broken(lambda model: unhook(model.model.language_model, before=False), call)


@calls("prompt", "own cache", "uncached", "generate")
def test_the_bases_hooks(call):
    broken(lambda model: unhook(model.model), call, versions=False)


@calls("prompt", "own cache", "uncached", "generate")
def test_the_bases_first_hook(call):
    broken(lambda model: unhook(model.model, after=False), call, versions=False)


@calls("generate", "generate uncached")
def test_the_models_hooks(call):
    broken(lambda model: unhook(model), call, says=GONE)


@pytest.mark.parametrize("which", ["base", "decoder", "layers"])
@calls("step", "turn", "prompt")
def test_hooks_of_a_model_that_chooses_anew(which, call):
    def work(model):
        parts = {"base": [model.model], "decoder": [model.model.language_model], "layers": layers_of(model)}
        if which == "base" and call != "prompt":
            unhook(model.model.language_model)  # a base without pictures has nothing to tell
        for part in parts[which]:
            unhook(part)

    broken(work, call, reselect=True)


def seen_no_more(model):
    del model.model.__dict__["get_image_features"]


@calls("prompt", "own cache", "uncached")
def test_the_encoder_is_not_seen(call):
    broken(seen_no_more, call, says="what was put in front of get_image_features")


@torch.no_grad()
def test_the_encoder_is_not_seen_before_generate():
    """Features that come ready say where they lie only in some families."""
    one = SPECIMENS["llava_next"]("sdpa")
    with adaptprune.prune(one.model, "random", keep_ratio=0.3):
        one.model.generate(**one.inputs(1), max_new_tokens=2)
        seen_no_more(one.model)
        with pytest.raises(AdaptPruneError):
            one.model.generate(**one.inputs(1), max_new_tokens=2)


@calls("prompt", "own cache", "uncached")
def test_pictures_that_are_encoded_by_other_means(call):
    def work(model):
        def forward(self, input_ids=None, pixel_values=None, inputs_embeds=None, **kwargs):
            states = self.get_input_embeddings()(input_ids)
            if pixel_values is not None:
                tokens = torch.cat(list(LlavaModel.get_image_features(self, pixel_values).pooler_output))
                states[input_ids == self.config.image_token_id] = tokens
            return LlavaModel.forward(self, inputs_embeds=states, **kwargs)

        dressed(model.model, forward=forward)

    broken(work, call)


@pytest.mark.parametrize("spec", ["fastv", "adaptprune", "adaptprune:keys=previous"])
@calls("prompt", "own cache", "uncached", "generate")
def test_attention_that_does_not_look_its_implementation_up(spec, call):
    def work(model):
        layers_of(model)[1].self_attn.config = model.model.language_model.config

    broken(work, call, spec, says="the watch on attention was changed")


@calls("turn")
def test_attention_that_is_not_seen_when_choosing_anew(call):
    def work(model):
        layers_of(model)[1].self_attn.config = model.model.language_model.config

    broken(work, call, "fastv", reselect=True)


@calls("prompt", "own cache", "uncached", "generate")
def test_keys_that_are_not_seen(call):
    def work(model):
        unhook(layers_of(model)[1].self_attn.k_proj)

    broken(work, call, "adaptprune:keys=previous", says="the hook after the keys of layer 1 was changed")


@pytest.mark.parametrize("numbers", [[2], [3], [2, 3, 4]])
@calls("prompt", "step", "step alone", "generate", "turn")
def test_the_cache_travels_by_another_name(numbers, call):
    def work(model):
        for number in numbers:
            dressed(layers_of(model)[number], **renaming(cache_argument(), "memory", LlamaDecoderLayer))

    broken(work, call, says="the cache's argument: a DynamicCache is handed on as 'memory'")


@calls("prompt", "step", "step alone", "generate", "turn", "uncached")
def test_the_states_travel_by_another_name(call):
    def work(model):
        def call_it(self, hidden_states, **kwargs):
            return LlamaDecoderLayer.__call__(self, x=hidden_states, **kwargs)

        def forward(self, x, **kwargs):
            return LlamaDecoderLayer.forward(self, x, **kwargs)

        dressed(layers_of(model)[3], __call__=call_it, forward=forward)

    broken(work, call, says="hidden states")


@calls("prompt", "step", "generate", "turn", "uncached")
def test_the_mask_travels_by_another_name(call):
    def work(model):
        for layer in layers_of(model):
            dressed(layer, **renaming("attention_mask", "bias", LlamaDecoderLayer))

    broken(work, call, versions=False)


STRANGE = {
    "a line": lambda length: torch.zeros(length),
    "three of them": lambda length: torch.zeros(3, length),
    "behind heads": lambda length: torch.zeros(2, 5, length),
    "in a tuple": lambda length: (torch.zeros(length), torch.zeros(length)),
    "in a dict": lambda length: {"inner": torch.zeros(length)},
}


@pytest.mark.parametrize("form", STRANGE)
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_values_per_token_that_cannot_be_cut(form, use_cache):
    model, given = fresh(), inputs()
    strange = STRANGE[form](given["input_ids"].shape[1])
    with adaptprune.prune(model, "fastv", keep_ratio=0.25):
        fits = torch.zeros(*given["input_ids"].shape, 4)
        for fitting in (fits, (fits, fits), {"inner": fits}):
            model(**given, use_cache=use_cache, strange=fitting)
        with pytest.raises(AdaptPruneError, match="strange"):
            model(**given, use_cache=use_cache, strange=strange)


@calls("prompt", "uncached", "generate", "step", "turn")
def test_a_decoder_that_stops_early(call):
    def work(model):
        decoder = model.model.language_model
        decoder.config.num_hidden_layers = 4

    broken(work, call, says="3 decoder layers have hooks, and 2 of them ran")


@calls("prompt", "uncached", "generate")
def test_a_layer_that_runs_twice(call):
    def work(model):
        decoder = model.model.language_model
        decoder.layers = nn.ModuleList([*decoder.layers, decoder.layers[4]])
        decoder.config.num_hidden_layers = 6

    broken(work, call, says="the list of the decoder's layers was changed")


@calls("prompt", "uncached", "generate")
def test_layers_in_another_order(call):
    def work(model):
        layers = layers_of(model)
        layers[2], layers[3] = layers[3], layers[2]

    broken(work, call)


@calls("prompt", "uncached", "step", "generate")
def test_a_layer_that_was_put_in_the_place_of_another(call):
    def work(model):
        layer = layers_of(model)[3]
        other = LlamaDecoderLayer(model.model.language_model.config, 3)
        other.load_state_dict(layer.state_dict())
        layers_of(model)[3] = other.eval()

    broken(work, call, says="the list of the decoder's layers was changed")


def own_loop(self, input_ids, logits_processor=None, stopping_criteria=None, generation_config=None, **kwargs):
    """Greedy decoding that hands arguments on as it likes."""
    kwargs = {k: v for k, v in kwargs.items() if k in ("attention_mask", "mm_encoder_outputs", "pixel_values")}
    mask = kwargs.pop("attention_mask")
    for _ in range(3):
        out = self(input_ids=input_ids, attention_mask=mask, use_cache=False, **kwargs)
        input_ids = torch.cat([input_ids, out.logits[:, -1:].argmax(-1)], dim=1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return input_ids


@calls("generate", "generate uncached")
def test_a_generate_that_does_not_ask_for_its_arguments(call):
    broken(lambda model: dressed(model, _sample=own_loop), call, says="generate\\(\\)'s forwards")


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"prompt_lookup_num_tokens": 3}], ids=str)
@torch.no_grad()
def test_a_generate_that_is_not_seen(options):
    """Called on the class, past what was put in front of it: an error, or what it gives when it is seen."""
    model = fresh()
    given = {key: value[1:] for key, value in inputs().items()}
    given["pixel_values"] = inputs()["pixel_values"][1:]
    options = {**options, "max_new_tokens": 8, "output_logits": True, "return_dict_in_generate": True}
    with adaptprune.prune(model, "fastv", keep_ratio=0.1):
        right = torch.stack(model.generate(**given, **options).logits)
        try:
            found = torch.stack(type(model).generate(model, **given, **options).logits)
        except AdaptPruneError:
            return
    assert same(found, right)


@torch.no_grad()
def test_a_handle_survives_what_it_withheld():
    """After an error the hooks come off as always, and the model answers as before."""
    model = fresh()
    plain = model(**inputs()).logits
    with adaptprune.prune(model, "fastv", keep_ratio=0.25):
        hooks = copy.copy(layers_of(model)[2]._forward_pre_hooks)
        unhook(layers_of(model)[2])
        with pytest.raises(AdaptPruneError):
            model(**inputs())
        layers_of(model)[2]._forward_pre_hooks.update(hooks)
        layers_of(model)[2]._forward_pre_hooks_with_kwargs.update(dict.fromkeys(hooks, True))
        assert model(**inputs()).logits.shape[1] < plain.shape[1]
    assert torch.equal(model(**inputs()).logits, plain)
