"""Answers that have to be JSON of a schema: llguidance says after each token which ones may follow. Loaded lazily."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptprune.engines.batch.vocabulary import Vocabulary
from adaptprune.engines.errors import EngineError, refused

#: Characters of a schema.
MAX_SCHEMA = 100_000
#: The least common multiple of all multipleOf: the compiler makes that many states.
MAX_MULTIPLE = 10_000
PARAM = "response_format"
#: What a compiler and a step may cost at most: well under a second and some milliseconds.
LIMITS: dict[str, Any] = {"max_grammar_size": 200_000, "max_lexer_states": 50_000, "precompute_large_lexemes": False}


class Grammars:
    """Compiles schemas for one vocabulary; safe to call from several threads.

    Parameters
    ----------
    vocabulary : Vocabulary
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary, self._lock = vocabulary, Lock()
        self._tokenizer: Any = None

    def compile(self, schema: str) -> Grammar:
        """The grammar of a JSON schema, at its beginning.

        Raises
        ------
        EngineError
            400: llguidance is not installed, or the schema is too large, not valid or uses what is not supported.
        """
        if find_spec("llguidance") is None:
            message = "JSON output needs llguidance, which this server lacks: pip install 'adaptprune[json]'."
            raise refused(message, PARAM, "unsupported_parameter")
        _check_size(schema)
        from llguidance import LLMatcher, LLParserLimits

        # without free white space: a model that does not know how to go on could write it for ever
        options: Any = {"whitespace_flexible": False, "lenient": False}
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=options)
        except ValueError as error:
            raise refused(f"the schema cannot be used: {_first(error)}.", PARAM, "bad_schema") from None
        matcher = LLMatcher(self._tokens(), grammar, log_level=0, limits=LLParserLimits(**LIMITS, verbose_errors=False))
        found = Grammar(matcher, len(self._vocabulary.tokens))
        found.check("the schema cannot be used")
        return found

    def _tokens(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._lock:
            if self._tokenizer is None:
                if not self._vocabulary.eos:
                    message = "this model has no token that ends an answer, and JSON output needs one."
                    raise refused(message, PARAM, "unsupported_parameter")
                words = TokenizerWrapper(_Bytes(self._vocabulary))
                self._tokenizer = LLTokenizer(words, eos_token=self._vocabulary.eos)
            return self._tokenizer


class _Bytes:
    """A vocabulary as llguidance reads it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens, self.special_token_ids = vocabulary.tokens, vocabulary.special
        self.eos_token_id = vocabulary.eos[0]
        self._ids = {token: index for index, token in reversed(list(enumerate(self.tokens)))}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: bytes) -> list[int]:
        """The longest tokens first; only to write what has no alternative."""
        ids, place = [], 0
        while place < len(text):
            sizes = range(min(self._longest, len(text) - place), 0, -1)
            size = next((size for size in sizes if text[place : place + size] in self._ids), 0)
            if not size:
                break
            ids.append(self._ids[text[place : place + size]])
            place += size
        return ids


class Grammar:
    """How far one row has come in its grammar; a processor of scores as `generate()` has them.

    Parameters
    ----------
    matcher
        llguidance's.
    size : int
        Tokens of the vocabulary.
    """

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher, self._size = matcher, size

    def copy(self) -> Grammar:
        """Another row's, as far as this one."""
        return Grammar(self._matcher.deep_copy(), self._size)

    def check(self, what: str) -> None:
        """Raise EngineError if the grammar cannot go on."""
        stuck = not self._allowed().any() or "NoExtension" in self._matcher.get_error()
        if stuck:
            raise refused(f"{what}: nothing that this model's tokens can write fits it.", PARAM, "bad_schema")
        if self._matcher.is_error():
            raise refused(f"{what}: {_first(self._matcher.get_error())}.", PARAM, "bad_schema")

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """`scores`, (1, vocabulary), with -inf for what may not follow."""
        allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
        found = self._allowed()[: len(allowed)]
        allowed[: len(found)] = torch.from_numpy(found)
        if not allowed.any():
            raise EngineError("bad_schema", "the answer cannot go on within the schema.", param=PARAM)
        return scores.masked_fill(~allowed.to(scores.device), float("-inf"))

    def accept(self, token: int) -> bool:
        """Go on by a token; whether the answer ends with it."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            message = f"the answer cannot go on within the schema: {_first(self._matcher.get_error())}."
            raise EngineError("bad_schema", message, param=PARAM)
        return bool(self._matcher.is_stopped())

    def _allowed(self) -> np.ndarray:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._size].astype(bool)


def _check_size(schema: str) -> None:
    """Refuse what the compiler's own limits do not catch."""
    if len(schema) > MAX_SCHEMA:
        raise refused(f"the schema has {len(schema):,} characters, more than {MAX_SCHEMA:,}.", PARAM, "bad_schema")
    common, left = 1, [json.loads(schema)]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            left += part.values()
            step = part.get("multipleOf")
            if isinstance(step, (int, float)) and 0 < step < math.inf:
                common = math.lcm(common, Fraction(str(step)).numerator)
            if common > MAX_MULTIPLE:
                message = f"the least common multiple of the schema's multipleOf is more than {MAX_MULTIPLE:,}."
                raise refused(f"{message} Use smaller ones.", PARAM, "bad_schema")
        elif isinstance(part, list):
            left += part


def _first(error: object) -> str:
    """What the library says in one line, short enough for a message."""
    text = (" ".join(str(error).replace("<non-verbose/>", "").split()) or "no reason given").rstrip(".")
    return text if len(text) <= 300 else text[:297] + "..."
