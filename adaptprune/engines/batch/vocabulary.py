"""The bytes that every token of a vocabulary stands for, also of one that is only part of a character. No models."""

from __future__ import annotations

import codecs
import json
import re
from functools import cached_property
from threading import Lock
from typing import Any

#: How SentencePiece writes a byte that has no piece of its own.
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """Bytes by token id; made at first use, safe to use from several threads.

    Parameters
    ----------
    tokenizer
        Used by this object alone.
    eos : frozenset of int
        Tokens at which the model ends an answer; the tokenizer's own if there are none.
    """

    def __init__(self, tokenizer: Any, eos: frozenset[int] = frozenset()) -> None:
        self._tokenizer, self._lock = tokenizer, Lock()
        own = getattr(tokenizer, "eos_token_id", None)
        self.eos = sorted(eos) or ([own] if own is not None else [])

    @property
    def tokens(self) -> list[bytes]:
        """What each token writes; special ones under their names."""
        with self._lock:
            return self._tokens

    @cached_property
    def special(self) -> list[int]:
        """Tokens that write nothing."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        return sorted({*self._tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)})

    @cached_property
    def _tokens(self) -> list[bytes]:
        pieces = self._tokenizer.convert_ids_to_tokens(list(range(len(self._tokenizer))))
        kind, plain = _decoder(self._tokenizer), {*self.special, *getattr(self._tokenizer, "added_tokens_decoder", {})}
        alphabet = _byte_alphabet() if "ByteLevel" in kind else {}
        return [
            piece.encode() if index in plain else _bytes_of(piece, kind, alphabet)
            for index, piece in enumerate("" if piece is None else piece for piece in pieces)
        ]


class ByteText:
    """Text of a growing list of tokens as `Vocabulary` has them; what a grammar has checked is what is shown.

    Takes the place of a `Detokenizer`, which for some tokenizers puts spaces between words that no token holds.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens, self._special = vocabulary.tokens, frozenset(vocabulary.special)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.length = 0

    def push(self, token: int) -> str:
        """The text that a token finishes; empty if a character is still incomplete."""
        text = self._decoder.decode(b"" if token in self._special else self._tokens[token])
        self.length += len(text)
        return text

    def flush(self) -> str:
        """What is left at the end, an incomplete character included."""
        return self._decoder.decode(b"", final=True)


def _decoder(tokenizer: Any) -> str:
    """The decoder of a fast tokenizer as JSON; "" if it has none."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return json.dumps(json.loads(decoder.__getstate__())) if decoder is not None else ""


def _bytes_of(piece: str, kind: str, alphabet: dict[str, int]) -> bytes:
    if alphabet:
        known = all(letter in alphabet for letter in piece)
        return bytes(alphabet[letter] for letter in piece) if known else piece.encode()
    if byte := _BYTE.fullmatch(piece):
        return bytes.fromhex(byte[1])
    if "WordPiece" in kind:
        return piece.removeprefix("##").encode()
    return piece.replace("\u2581", " ").encode()  # SentencePiece's space


def _byte_alphabet() -> dict[str, int]:
    """The letters that byte-level tokenizers (GPT-2's and its heirs') write for bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
