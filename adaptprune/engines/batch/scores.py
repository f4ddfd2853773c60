"""Log probabilities of written tokens, listed as the text that they belong to is shown. Only for rows that ask."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from torch import Tensor

from adaptprune.engines.batch.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenScore:
    """One token of an answer.

    Attributes
    ----------
    token : bytes
    logprob : float
        Natural logarithm of the model's own probability: before temperature, penalties and any grammar.
    top : tuple of (bytes, float)
        The likeliest tokens at its place, the likeliest first.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


class TokenScores:
    """The scores of one row.

    Parameters
    ----------
    vocabulary : Vocabulary
    count : int
        How many of the likeliest tokens to list at each place.
    """

    def __init__(self, vocabulary: Vocabulary, count: int) -> None:
        self._tokens, self._count = vocabulary.tokens, count
        self._held: deque[tuple[int, TokenScore]] = deque()
        self._shown = 0

    def note(self, token: int, scores: Tensor, begins: int) -> None:
        """Keep a token until its text is shown.

        Parameters
        ----------
        token : int
        scores : Tensor
            (vocabulary,), float32, as the model gave them.
        begins : int
            Characters of the answer that were finished before it.
        """
        logs = scores.log_softmax(-1)
        best = logs.topk(min(self._count, len(logs)))
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        score = TokenScore(
            self._bytes(token), float(logs[token]), tuple((self._bytes(index), value) for index, value in top)
        )
        self._held.append((begins, score))

    def release(self, text: str, rest: bool) -> tuple[TokenScore, ...]:
        """Tokens whose first character is part of what was shown, `text` included; with `rest`, all that are held.

        What a stop string cuts off is never shown, and its tokens are not listed either.
        """
        self._shown += len(text)
        found = []
        while self._held and (rest or self._held[0][0] < self._shown):
            found.append(self._held.popleft()[1])
        return tuple(found)

    def _bytes(self, token: int) -> bytes:
        return self._tokens[token] if token < len(self._tokens) else b""  # models pad their vocabulary
