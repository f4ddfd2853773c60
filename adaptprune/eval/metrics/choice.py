"""Multiple choice: which letter an answer means (MMBench's and ScienceQA's rules), and circular evaluation.

MMBench (arXiv 2307.06281) asks a question once per rotation of its options; it is answered right if every rotation is.
The official evaluation asks a language model about answers from which no letter can be read; here they are wrong, and
counted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
SPELLED_OUT = re.compile(r"(?i)answer\s+is\s+\**([A-D])\**")
LAST_WORDS = 4


def letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names, by MMBench's rules, or None.

    A letter on its own if only one option's stands in the answer, and near its end; or after "answer is"; or the one
    option whose text is in the answer, unless the answer is more than twice as long as all options together.
    """
    words = answer.translate(MARKS).split()
    present = [name for name in options if name in words]
    if len(present) == 1 and words.index(present[0]) >= len(words) - LAST_WORDS:
        return present[0]
    spelled = SPELLED_OUT.search(answer)
    if spelled and spelled[1].upper() in options:
        return spelled[1].upper()
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    told = [name for name, text in options.items() if text.lower() in answer.lower()]
    return told[0] if len(told) == 1 else None


def scienceqa_letter(answer: str, letters: Sequence[str]) -> str | None:
    """The letter alone, in front of ". ", or in "The answer is X."; as LLaVA's evaluation reads ScienceQA's answers."""
    if answer in letters:
        return answer
    if answer[:1] in letters and answer[1:3] == ". ":
        return answer[0]
    told = re.findall(r"The answer is ([A-Z]).", answer)
    return told[0] if len(told) == 1 and told[0] in letters else None


class Circular:
    """Whether every rotation of a question was answered right; and the plain accuracy of the questions as written."""

    def __init__(self) -> None:
        self._right: dict[int, bool] = {}
        self._plain: dict[int, bool] = {}
        self._group: dict[int, tuple[str, ...]] = {}

    def add(self, question: int, rotation: int, right: bool, groups: Sequence[str]) -> None:
        """`rotation` 0 is the question as written; `groups` are categories that are reported on their own."""
        self._right[question] = self._right.get(question, True) and right
        if rotation == 0:
            self._plain[question] = right
        self._group[question] = tuple(groups)

    def result(self) -> dict[str, float]:
        """Percent of questions: circular, vanilla (unrotated questions only), and circular by group."""
        groups: dict[str, list[bool]] = defaultdict(list)
        for question, names in self._group.items():
            for name in names:
                groups[name].append(self._right[question])
        found = {"circular": _mean(list(self._right.values())), "vanilla": _mean(list(self._plain.values()))}
        return found | {name: _mean(right) for name, right in sorted(groups.items())}


def _mean(values: Sequence[bool]) -> float:
    return 100 * sum(values) / len(values) if values else float("nan")
