"""The code that makes the pocket models, on tiny plans, for both architectures."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import adaptprune
from adaptprune.hooks.seams.processors import options_for
from adaptprune.tabletop import questions, render, scene
from adaptprune.tabletop.labels import patch_labels


def smooth(x):
    """The error of a logarithm as `shares.sum_error` takes it."""
    return x * x / 0.2 if abs(x) < 0.1 else abs(x) - 0.05


def trainer_of(name):
    """An untrained model of an architecture with all that training adds."""
    pytest.importorskip("pocket")
    from pocket.architectures import ARCHITECTURES
    from pocket.train_tower import TowerWithHeads
    from pocket.trainer import PocketTrainer

    torch.manual_seed(0)
    return PocketTrainer(TowerWithHeads(ARCHITECTURES[name])).eval()


def prompt_of(trainer, processor, pictures, question):
    """Inputs of the stock model for a question, as a user of the exported folder would make them."""
    content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=pictures, text=text, return_tensors="pt", **options_for(trainer.model))


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_packed_turns_are_the_exported_prompt(name):
    trainer = trainer_of(name)
    from pocket.plans import Phase
    from pocket.samples import sample
    from pocket.trainer import look

    processor = trainer.architecture.make_processor()
    phase = Phase(1, 576, ("existence", "reading", "where"), 1, 1)
    batch = sample(trainer.words, [scene("train", 3)], phase, 1)
    with torch.no_grad():
        logits, _, _ = trainer(look(trainer.seer, batch.scenes), batch.keep, batch.packed)
        first = 0
        for question in questions(scene("train", 3), 1, phase.types, 1):
            inputs = prompt_of(trainer, processor, [render(scene("train", 3))], question.question)
            assert (inputs["input_ids"] == processor.image_token_id).sum() == 576
            assert torch.allclose(trainer.model(**inputs).logits[0, -1], logits[first], atol=1e-4)
            first += len(trainer.words.turn(question)[1])


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_packed_pairs_are_the_exported_prompt_of_two_pictures(name):
    trainer = trainer_of(name)
    from pocket.plans import Phase
    from pocket.samples import PAIR_TURNS, pair_questions, sample
    from pocket.trainer import look

    processor = trainer.architecture.make_processor()
    scenes = [scene("train", 3), scene("train", 4)]
    batch = sample(trainer.words, scenes, Phase(1, 576, ("existence",), 1, 2, pairs=1), 1)
    with torch.no_grad():
        logits, _, _ = trainer(*batch.paired(look(trainer.seer, scenes)), batch.pairs)
        first = 0
        for question in pair_questions(*scenes, 1, PAIR_TURNS)[:3]:
            inputs = prompt_of(trainer, processor, [render(s) for s in scenes], question.question)
            assert (inputs["input_ids"] == processor.image_token_id).sum() == 2 * 576
            assert torch.allclose(trainer.model(**inputs).logits[0, -1], logits[first], atol=1e-4)
            first += len(trainer.words.turn(question)[1])


def test_an_export_of_qwen_is_stock_and_loads(tmp_path):
    pytest.importorskip("pocket")
    from pocket.architectures import ARCHITECTURES
    from pocket.export import export
    from pocket.runs import save

    trainer = trainer_of("qwen")
    (tmp_path / "run").mkdir()
    save(tmp_path / "run" / "language.pt", {"model": trainer.state_dict()})
    export(tmp_path / "run", tmp_path / "out", "tiny-qwen")
    files = {path.name: path.stat() for path in (tmp_path / "out").iterdir()}
    assert sum(stat.st_size for stat in files.values()) < 15e6
    assert not [name for name in files if name.endswith((".bin", ".pt", ".py", ".pkl"))]
    settings = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert settings["video_processor"]["video_processor_type"] == "Qwen2VLVideoProcessor"

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert model.dtype == torch.float32
    processor = ARCHITECTURES["qwen"].make_processor()
    ids = processor.tokenizer.get_vocab()
    assert len(ids) == model.get_input_embeddings().num_embeddings
    assert ids["<|image_pad|>"] == model.config.image_token_id == processor.image_token_id
    assert ids["<|im_end|>"] == model.generation_config.eos_token_id == model.config.text_config.eos_token_id
    loaded, reader = adaptprune.load(str(tmp_path / "out"))
    for size, tokens in (((336, 336), 576), ((168, 98), 84), ((1000, 500), 528)):
        inputs = prompt_of(trainer, processor, [Image.new("RGB", size, "red")], "What?")
        again = prompt_of(trainer, reader, [Image.new("RGB", size, "red")], "What?")
        assert torch.equal(inputs["input_ids"], again["input_ids"])
        assert (inputs["input_ids"] == processor.image_token_id).sum() == tokens
        with torch.no_grad():
            assert torch.allclose(trainer.model(**inputs).logits, model(**inputs).logits, atol=2e-2)
            assert torch.allclose(model(**inputs).logits, loaded(**again).logits, atol=1e-4)


def test_queries_and_keys_are_reined_in_and_answers_stay():
    trainer = trainer_of("qwen")
    from pocket.plans import Phase
    from pocket.rein import LIMIT
    from pocket.samples import sample
    from pocket.trainer import look

    batch = sample(trainer.words, [scene("train", 3)], Phase(1, 576, ("where",), 1, 1), 1)
    layers = [layer.self_attn for layer in trainer.core.layers]

    def longest():
        with torch.no_grad():
            trainer(look(trainer.seer, batch.scenes), batch.keep, batch.packed)
        return max((length.max().item() ** 2 * layer.scaling) for layer in layers for length in layer.lengths)

    assert longest() < LIMIT
    before = [layer.q_proj.weight.clone() for layer in layers]
    assert trainer.rein.tighten() < 1
    assert all(torch.equal(one, layer.q_proj.weight) for one, layer in zip(before, layers, strict=True))
    with torch.no_grad():
        layers[2].q_proj.weight[:32] *= 20
    assert longest() > LIMIT
    trainer.rein.tighten()
    assert longest() == pytest.approx(LIMIT, rel=1e-3)
    assert torch.equal(before[2][32:], layers[2].q_proj.weight[32:])


def test_mentions_are_found_and_looked_up():
    pytest.importorskip("pocket")
    from pocket.architectures import ARCHITECTURES
    from pocket.mentions import find_mentions, phrases
    from pocket.turns import Words, pack

    def found(text, bare_nouns=False):
        return phrases(text.split(), bare_nouns)

    assert found("is there a red circle ?") == [(4, "red", "circle")]
    assert found("what color is the object nearest to the star ?") == [(8, None, "star")]
    assert found("are there more pink things than hearts ?") == [(4, "pink", None), (6, None, "heart")]
    assert found("how many items are there ?", True) == [(2, None, None)]

    words = Words(ARCHITECTURES["llava"])
    current = scene("train", 5)
    asked = questions(current, 0, ["counting", "where", "colour"], 3)
    mentions = find_mentions(words, [current], [asked])
    packed = pack(words, [asked])
    for place, classes in zip(mentions.place, mentions.classes, strict=True):
        question = asked[packed.turn[0, place]]
        if question.type == "counting":
            assert str(classes[0].item()) == question.answer
        else:
            assert classes[0] == 1
    assert len(mentions.row) == len(asked)


def test_where_words_should_look_sums_to_the_number_of_things():
    pytest.importorskip("pocket")
    from pocket.architectures import ARCHITECTURES
    from pocket.looking import find_looks
    from pocket.mentions import find_mentions
    from pocket.shares import shares
    from pocket.turns import Words

    scenes = [scene("train", index) for index in range(12)]
    labels = [patch_labels(current) for current in scenes]
    for current, truth in zip(scenes, labels, strict=True):
        share = shares(truth, np.arange(576))
        assert not share[truth.thing < 0].any()
        for number in set(range(len(current.things))) & set(truth.thing):
            assert share[truth.thing == number].sum() == pytest.approx(1)
    asked = [questions(current, 0, ["counting", "nearest"], 3) for current in scenes]
    mentions = find_mentions(Words(ARCHITECTURES["llava"]), scenes, asked)
    looks = find_looks(mentions, labels, np.arange(576)[None].repeat(len(scenes), 0))
    flat = [question for turns in asked for question in turns]
    for question, fits, following, row in zip(flat, looks.fits, looks.next, mentions.row.tolist(), strict=True):
        if question.type == "counting":
            assert fits.sum() == int(question.answer)
        else:
            assert fits.sum() == 1
            thing = scenes[row].things[labels[row].thing[following.argmax()]]
            assert question.answer in (thing.colour, thing.shape)
            assert following.sum().item() == pytest.approx(1)


def test_the_loss_of_looking_is_that_of_the_attention_itself(monkeypatch):
    trainer = trainer_of("llava")
    from pocket import trainer as module
    from pocket.looking import COUNT_LAYERS, HEAD, NEXT_LAYER, SINK
    from pocket.plans import Phase
    from pocket.samples import sample

    phase = Phase(1, 60, ("nearest", "counting"), 2, 2)
    batch = sample(trainer.words, [scene("train", 3), scene("train", 4)], phase, 1, looking=True)
    features = batch.kept(module.look(trainer.seer, batch.scenes))
    core, weights = trainer.core, {}
    before = len(trainer.words.prefix)
    with torch.no_grad():
        trainer(features, batch.keep, batch.packed)
        loss, parts = trainer.looking.loss(batch.mentions, batch.looks, before)
        core.config._attn_implementation = "eager"  # adds its mask
        seen = module.mask(batch.packed, before + 60)
        monkeypatch.setattr(module, "mask", lambda *_: torch.zeros(seen.shape).masked_fill(~seen, -torch.inf))
        for number in (*COUNT_LAYERS, NEXT_LAYER):
            core.layers[number].self_attn.register_forward_hook(
                lambda _m, _a, output, number=number: weights.update({number: output[1][:, HEAD].double()})
            )
        trainer(features, batch.keep, batch.packed)
    mentions, looks = batch.mentions, batch.looks
    where = list(zip(mentions.row.tolist(), (before + 60 + mentions.place).tolist(), strict=True))

    looking = []
    for layer in COUNT_LAYERS:
        wrong, rest = [], []
        for m, (row, place) in enumerate(where):
            seen = weights[layer][row, place]
            things = (seen[before : before + 60] / seen[0] * SINK).tolist()
            for number in looks.fits[m].nonzero()[:, 0].tolist():
                own = [w for w, t in zip(things, looks.thing[row].tolist(), strict=True) if t == number]
                wrong.append(smooth(math.log(sum(own) + 1e-4)))
            meant = looks.fits[m].nonzero()[:, 0].tolist()
            others = [w for w, t in zip(things, looks.thing[row].tolist(), strict=True) if t not in meant]
            rest.append(math.log1p(sum(others)))
        looking.append(sum(wrong) / len(wrong) + sum(rest) / len(rest))
    assert parts["look"] == pytest.approx(sum(looking) / len(looking), abs=1e-4)

    near = []
    for m, (row, place) in enumerate(where):
        if mentions.near[m] is not None:
            seen = weights[NEXT_LAYER][row, place][before : before + 60]
            wanted = zip(looks.next[m].tolist(), (seen / seen.sum()).tolist(), strict=True)
            near.append(sum(w * math.log(w / s) for w, s in wanted if w))
    assert near
    assert parts["look next"] == pytest.approx(sum(near) / len(near), abs=1e-4)
    assert loss.item() == pytest.approx(parts["look"] + parts["look next"], abs=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_training_resumes_after_a_kill(tmp_path, name):
    pytest.importorskip("pocket")
    import pocket.train_tower as stage
    from pocket.architectures import ARCHITECTURES
    from pocket.train_tower import TowerPlan, TowerWithHeads, train_tower

    def start():
        torch.manual_seed(0)
        return TowerWithHeads(ARCHITECTURES[name])

    whole, split = tmp_path / "whole", tmp_path / "split"
    plan = TowerPlan(steps=4, crops_per_step=4, full_per_step=1, full_share=0.0, save_every=2, validate_every=100)
    expected = train_tower(whole, plan, start()).state_dict()

    class Killed(Exception):
        pass

    make_batch = stage.make_batch

    def until_step_two(step, *rest):
        if step == 2:
            raise Killed
        return make_batch(step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "make_batch", until_step_two)
        with pytest.raises(Killed):
            train_tower(split, plan, start())
    resumed = train_tower(split, plan, start()).state_dict()
    for name, value in expected.items():
        assert torch.allclose(value, resumed[name], atol=1e-6), name


def test_muon_steps_are_orthogonal():
    pytest.importorskip("pocket")
    from pocket.muon import orthogonalise

    torch.manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.4
