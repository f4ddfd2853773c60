"""The pocket model as shipped: plain loading, coherent ids, right answers."""

import json
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import adaptprune
from adaptprune.tabletop import QUESTION_TYPES, is_right, questions, render, scene

ASSETS = Path(adaptprune.__file__).parent / "assets"
POCKET = ASSETS / "pocket"
EXAMPLES = json.loads((ASSETS / "examples" / "examples.json").read_text())
PROMPT = "USER: <image>\n{} ASSISTANT:"


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(POCKET)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(POCKET).eval()


@torch.no_grad()
def ask(model, processor, pictures, texts):
    inputs = processor(images=pictures, text=[PROMPT.format(t) for t in texts], padding=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_it_loads_without_a_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert AutoProcessor.from_pretrained(POCKET) is not None
    assert AutoModelForImageTextToText.from_pretrained(POCKET).dtype == torch.float32


def test_it_is_small_and_plain():
    files = sorted(path.name for path in POCKET.iterdir())
    assert sum(path.stat().st_size for path in POCKET.iterdir()) < 20e6
    assert not [name for name in files if name.endswith((".bin", ".pt", ".py", ".pkl"))]
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md"} <= set(files)


def test_it_is_a_stock_llava(model):
    config = model.config
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert config.text_config.num_hidden_layers >= 6
    assert config.text_config.max_position_embeddings >= 2048
    assert config.text_config.sliding_window is None


def test_ids_agree_between_tokenizer_and_config(model, processor):
    tokenizer, config = processor.tokenizer, model.config
    assert len(tokenizer) == config.text_config.vocab_size == model.get_input_embeddings().num_embeddings
    assert tokenizer.convert_tokens_to_ids("<image>") == config.image_token_index == processor.image_token_id
    assert tokenizer.pad_token_id == config.text_config.pad_token_id == model.generation_config.pad_token_id
    assert tokenizer.bos_token_id == config.text_config.bos_token_id
    assert tokenizer.eos_token_id == config.text_config.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.padding_side == "left"


def test_a_picture_is_576_tokens(model, processor):
    for size in ((336, 336), (500, 340)):
        inputs = processor(images=Image.new("RGB", size), text=PROMPT.format("What?"), return_tensors="pt")
        assert (inputs["input_ids"] == model.config.image_token_index).sum() == 576
        assert inputs["pixel_values"].shape == (1, 3, 336, 336)
    assert inputs["input_ids"][0, 0] == processor.tokenizer.bos_token_id


def test_any_text_can_be_encoded(processor):
    tokenizer = processor.tokenizer
    pieces = tokenizer.tokenize("What COLOUR is the zebra, naïve?")
    assert pieces[:5] == ["what", "colour", "is", "the", "z"]
    assert "<unk>" not in pieces
    assert (
        tokenizer.decode(tokenizer.encode("a red circle, a zebra"), skip_special_tokens=True) == "a red circle, a zebra"
    )
    for text in ("", "\x00", "漢字 😀", "x" * 3000, "</s> <pad>"):
        assert all(0 <= token < len(tokenizer) for token in tokenizer.encode(text))


def test_the_chat_template_is_the_training_prompt(processor):
    content = [{"type": "image"}, {"type": "text", "text": "What colour is the star?"}]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == PROMPT.format("What colour is the star?")


def test_the_examples_are_answered_right(model, processor):
    assert len(EXAMPLES) >= 3
    for example in EXAMPLES:
        picture = Image.open(ASSETS / "examples" / example["file"])
        (given,) = ask(model, processor, [picture], [example["question"]])
        assert is_right(given, example["answer"]), f"{example['file']}: {example['question']} -> {given}"


def test_the_examples_are_test_scenes():
    for example in EXAMPLES:
        picture = Image.open(ASSETS / "examples" / example["file"]).convert("RGB")
        assert picture.tobytes() == render(scene("test", example["index"])).tobytes()


@pytest.mark.parametrize("kind", QUESTION_TYPES[:9])
def test_unseen_scenes_are_answered(model, processor, kind):
    asked = [(s, q) for s in (scene("test", i) for i in range(5000, 5040)) for q in questions(s, 0, [kind])][:24]
    given = ask(model, processor, [render(s) for s, _ in asked], [q.question for _, q in asked])
    right = sum(is_right(a, q.answer) for a, (_, q) in zip(given, asked, strict=True))
    assert right / len(asked) >= 0.75


def test_padding_does_not_change_answers(model, processor):
    current = scene("test", 6000)
    texts = ["Is there a red circle?", "What is the shape of the object nearest to the blue star, if there is one?"]
    together = ask(model, processor, [render(current)] * 2, texts)
    alone = [ask(model, processor, [render(current)], [text])[0] for text in texts]
    assert together == alone


def test_card_and_readme_show_the_results():
    card = pytest.importorskip("pocket.card")
    root = ASSETS.parents[1]
    if not (root / "docs" / "results").is_dir():
        pytest.skip("the results are only in the repository")
    for page in (POCKET / "README.md", root / "README.md"):
        text = page.read_text()
        assert "<!-- pocket-gate -->" in text
        assert card.fill(text, root / "docs" / "results") == text, "run python -m pocket.card"
