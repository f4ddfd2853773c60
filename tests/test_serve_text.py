"""Text in pieces: nothing lost, nothing split, nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import adaptprune
from adaptprune.prompts.text import Detokenizer, StopText


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are single bytes, so that characters take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


BYTES = byte_level()


@given(st.text(max_size=30))
def test_pieces_are_whole_characters_and_make_up_the_text(text):
    pieces, detokenizer = [], Detokenizer(BYTES)
    for token in BYTES(text)["input_ids"]:
        pieces.append(detokenizer.push(token))
        assert "\ufffd" not in pieces[-1] or "\ufffd" in text
    assert "".join(pieces) + detokenizer.flush() == text


def test_an_unfinished_character_is_shown_at_the_end():
    detokenizer = Detokenizer(BYTES)
    tokens = BYTES("ab😀")["input_ids"]
    assert "".join(map(detokenizer.push, tokens[:-1])) == "ab"
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@settings(max_examples=50)
@given(st.lists(st.integers(5, 200), max_size=30))
def test_pieces_equal_the_whole_with_the_pocket_tokenizer(pocket_tokenizer, tokens):
    detokenizer = Detokenizer(pocket_tokenizer)
    text = "".join(map(detokenizer.push, tokens)) + detokenizer.flush()
    whole = pocket_tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text == whole


@pytest.fixture(scope="module")
def pocket_tokenizer():
    return adaptprune.load()[1].tokenizer


words = st.text("ab.", min_size=1, max_size=4)


@given(st.lists(st.text("ab.", max_size=4), max_size=20), st.lists(words, max_size=3))
def test_stop_strings_against_looking_at_the_whole_text(pieces, stops):
    stop, shown = StopText(stops), ""
    for piece in pieces:
        shown += stop.push(piece)
        if stop.stopped:
            break
    shown += stop.flush()
    text = "".join(pieces)
    # a stop string counts as soon as it is complete, and then the earliest beginning wins
    ends = [text.find(one) + len(one) for one in stops if one in text]
    if not ends:
        assert (shown, stop.stopped) == (text, False)
        return
    assert stop.stopped
    assert text.startswith(shown)
    assert any(text[len(shown) :].startswith(one) for one in stops)
    assert not any(one in shown for one in stops)
