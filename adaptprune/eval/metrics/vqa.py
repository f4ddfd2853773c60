"""VQA accuracy and the normalisation of answers that goes with it (VQAv2, VizWiz, TextVQA).

Accuracy (https://visualqa.org/evaluation.html): an answer counts min(1, n/3) where n people gave it,
averaged over the subsets that leave one of the ten people out. Normalisation follows the evaluation server's
processor as LLaVA uses it, its oddities included: they decide published numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,+\d")
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # the processor hands a flag over as the count of replacements
APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Each word by the forms of it that lack one apostrophe; and one word that the processor takes its own from."""
    forms = APOSTROPHES.split()
    places = {word: [i for i, letter in enumerate(word) if letter == "'"] for word in forms}
    table = {word[:place] + word[place + 1 :]: word for word in forms for place in places[word]}
    return {**table, "somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()


def words(text: str) -> str:
    """Punctuation out, lower case, numbers as digits, articles out, contractions with their apostrophes."""
    crowded = COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        alone = f"{mark} " in text or f" {mark}" in text or crowded
        out = out.replace(mark, "" if alone else " ")
    out = PERIOD.sub("", out, count=MOST_PERIODS)
    digits = (NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in digits if word not in ARTICLES)


def normalise(text: str) -> str:
    """The evaluation server's form of an answer: commas, question marks and the case go first, then `words`."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return words(text.replace("\n", " ").replace("\t", " ").strip())


def accuracy(answer: str, people: Sequence[str]) -> float:
    """VQA accuracy of an answer against the people's; all are in the same form already."""
    same = Counter(people)[answer]
    others = len(people) - same
    if not people:
        return 0.0
    return (same * min(1.0, (same - 1) / 3) + others * min(1.0, same / 3)) / len(people)
