"""Conversation templates and tokens of the original LLaVA checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adaptprune
from adaptprune.models.original import Layout
from adaptprune.models.tokens import conversation
from adaptprune.prompts.conversations import CONVERSATIONS, chat_template
from tests.original_layout import original_logits, parts, write
from tests.test_loading_original import logits, picture

SYSTEM = {
    "vicuna_v1": "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions.",
    "llama_2": "You are a helpful language and vision assistant. You are able to understand the visual content that "
    "the user provides, and assist the user with a variety of tasks using natural language.",
    "mistral_instruct": "",
    "chatml_direct": "Answer the questions.",
}


def restated(name: str, turns: list[str]) -> str:
    """The prompt up to the next answer; turns are the user's and the assistant's in turns, the user's last."""
    text = ""
    for number, turn in enumerate(turns):
        user = number % 2 == 0
        if name == "vicuna_v1":
            text += f"USER: {turn} " if user else f"ASSISTANT: {turn}</s>"
        elif name == "chatml_direct":
            text += f"<|im_start|>{'user' if user else 'assistant'}\n{turn}<|im_end|>"
        elif user:
            system = f"<<SYS>>\n{SYSTEM[name]}\n<</SYS>>\n\n" if SYSTEM[name] and number == 0 else ""
            text += ("<s>" if name == "llama_2" and number else "") + f"[INST] {system}{turn} [/INST]"
        else:
            text += f" {turn} </s>"
    if name == "vicuna_v1":
        return f"{SYSTEM[name]} {text}ASSISTANT:"
    if name == "chatml_direct":
        return f"<|im_start|>system\n{SYSTEM[name]}<|im_end|>{text}<|im_start|>assistant\n"
    return text


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    made = parts("1.5")
    return made, *adaptprune.load(write(made, tmp_path_factory.mktemp("loaded")), device="cpu")


@pytest.mark.parametrize("name", list(CONVERSATIONS))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1), min_size=1, max_size=5),
    images=st.integers(0, 2),
)
def test_templates_repeat_the_conversations(loaded, name, turns, images):
    turns = turns if len(turns) % 2 else turns[:-1]
    messages = []
    for number, turn in enumerate(turns):
        content = [{"type": "image"}] * (images if number == 0 else 0) + [{"type": "text", "text": turn}]
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    text = loaded[2].apply_chat_template(
        messages, chat_template=chat_template(name, "<image>"), add_generation_prompt=True
    )
    assert text == restated(name, ["<image>\n" * images + turns[0], *turns[1:]])


def test_plain_strings_and_a_system_prompt(loaded):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert loaded[2].apply_chat_template(messages, add_generation_prompt=True) == "Be brief. USER: Hi ASSISTANT:"


@pytest.mark.parametrize(
    ("model_type", "name", "expected"),
    [
        ("llava_llama", "liuhaotian/llava-v1.5-7b", "vicuna_v1"),
        ("llava_llama", "/models/mine", "vicuna_v1"),
        ("llava_mistral", "/models/mine", "mistral_instruct"),
        ("llava_llama", "liuhaotian/llava-v1.6-34b", "chatml_direct"),
        ("llava_llama", "liuhaotian/llava-llama-2-13b-chat-lightning-preview", "llama_2"),
    ],
)
def test_the_conversation_of_a_checkpoint(model_type, name, expected):
    config = {**parts("1.5").config, "model_type": model_type, "architectures": []}
    assert conversation(Layout.of(config, "tower"), name) == expected


def test_a_conversation_gives_the_logits_of_the_original(loaded):
    made, model, processor = loaded
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    images = [picture(90, 40)]
    expected = original_logits(made, text, images)
    torch.testing.assert_close(
        logits(model, processor, text, images)[:, : expected.shape[-1]], expected, atol=1e-4, rtol=1e-4
    )


def test_what_generation_needs(loaded):
    _, model, processor = loaded
    tokenizer = processor.tokenizer
    assert tokenizer.padding_side == "left"
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>") == len(tokenizer) - 2
    assert model.generation_config.eos_token_id == 2
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == len(tokenizer) - 1
    assert model.get_input_embeddings().weight.shape[0] % 64 == 0
    inputs = processor(
        images=[picture(60, 60)] * 2, text=["<image> a", "<image> a red cat"], return_tensors="pt", padding=True
    )
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 2


def test_start_and_end_tokens(tmp_path):
    """Rows of the embeddings for them, the tokens themselves only in config.json, as in the first checkpoints."""
    made = parts("1.5", mm_use_im_start_end=True, mm_use_im_patch_token=True)
    words = len(made.tokenizer)
    made.text.resize_token_embeddings(words + 3, mean_resizing=False)
    folder = write(made, tmp_path)
    model, processor = adaptprune.load(folder, device="cpu")
    names = ["<im_patch>", "<im_start>", "<im_end>", "<image>"]
    assert processor.tokenizer.convert_tokens_to_ids(names) == [words, words + 1, words + 2, words + 3]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert "USER: <im_start><image><im_end>\nWhat? ASSISTANT:" in text
    made.tokenizer.add_tokens(names[:3], special_tokens=True)
    ids = processor(images=[picture(60, 60)], text=text, return_tensors="pt")["input_ids"][0].tolist()
    assert ids[ids.index(words + 1) + 1 : ids.index(words + 2)] == [words + 3] * 16
    assert model.model.language_model.embed_tokens.weight.shape[0] >= words + 5


def test_a_sentencepiece_tokenizer(tmp_path):
    """What published checkpoints have: tokenizer.model, and the original's way of cutting at images."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the llava extra is not installed")
    pytest.importorskip("google.protobuf", reason="the llava extra is not installed")
    made = parts("1.5")
    folder = Path(write(made, tmp_path))
    (folder / "tokenizer.json").unlink()
    lines = ["USER: What colour is the cat in this image? ASSISTANT: a red cat"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=3,
    )
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    settings_ = json.loads((folder / "tokenizer_config.json").read_text())
    for legacy in (False, True):
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings_, "legacy": legacy}))
        _, processor = adaptprune.load(str(folder), device="cpu")
        text = "USER: <image>\nWhat colour is <image>\nthe cat? ASSISTANT:"
        ids = processor(images=[picture(60, 60)] * 2, text=text, return_tensors="pt")["input_ids"][0].tolist()
        image = [processor.tokenizer.convert_tokens_to_ids("<image>")] * 16
        first, second, third = (pieces.encode(part) for part in text.split("<image>"))
        assert ids == [1, *first, *image, *second, *image, *third]
