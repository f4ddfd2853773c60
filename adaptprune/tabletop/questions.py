"""Questions with one right answer about a scene, balanced so that guessing does not pay.

Contract: ``questions(scene, seed)`` is a pure function. References are unique ("the star" is asked about only where
there is one star), yes and no are equally likely, and "no" to an existence question is hard: the colour is there on
another shape. A type that does not fit a scene (reading without a sign) is left out rather than bent.
Adding a type: one function, one entry in ``_MAKERS``, its phrasings in ``phrases.py``.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adaptprune.tabletop.phrases import NOUNS, PLURAL_NOUNS, TEMPLATES, article
from adaptprune.tabletop.scenes import Draw, Scene, Thing, scene_seed
from adaptprune.tabletop.vocabulary import (
    COLOUR_NAMES,
    IMAGE_SIZE,
    MANY_OBJECTS,
    PLURALS,
    SHAPES,
    SMALL_RADIUS,
)


@dataclass(frozen=True)
class Question:
    """A question, its answer and what makes it hard.

    ``marks`` is a subset of ``small_object`` (it is about a thing hardly wider than two patches), ``many_objects``
    (nine things or more on the table) and ``fine_detail`` (the answer hangs on characters or on a small outline).
    """

    type: str
    question: str
    answer: str
    marks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Reference:
    """A description that fits exactly one thing."""

    thing: Thing
    colour: str | None
    shape: str | None

    def phrase(self, draw: Draw) -> str:
        return _phrase(self.colour, self.shape, draw)


def _phrase(colour: str | None, shape: str | None, draw: Draw, plural: bool = False) -> str:
    if plural:
        noun = draw.choice(PLURAL_NOUNS) if shape is None else PLURALS[shape]
    else:
        noun = draw.choice(NOUNS) if shape is None else shape
    return noun if colour is None else f"{colour} {noun}"


def _references(scene: Scene) -> list[_Reference]:
    """All unique descriptions by colour, by shape, or by both where neither alone would do."""
    colours = Counter(thing.colour for thing in scene.things)
    shapes = Counter(thing.shape for thing in scene.things)
    pairs = Counter((thing.colour, thing.shape) for thing in scene.things)
    found = []
    for thing in scene.things:
        if colours[thing.colour] == 1:
            found.append(_Reference(thing, thing.colour, None))
        if shapes[thing.shape] == 1:
            found.append(_Reference(thing, None, thing.shape))
        if pairs[thing.colour, thing.shape] == 1:
            found.append(_Reference(thing, thing.colour, thing.shape))
    return found


def _question(
    scene: Scene,
    draw: Draw,
    kind: str,
    answer: str,
    things: Sequence[Thing] = (),
    template: str | None = None,
    fine: bool = False,
    **parts: str,
) -> Question:
    text = draw.choice(TEMPLATES[template or kind]).format(**parts)
    if draw.chance(0.5):
        text = text.replace("colour", "color")
    small = any(thing.radius < SMALL_RADIUS for thing in things)
    marks = {"small_object": small, "many_objects": len(scene.things) >= MANY_OBJECTS, "fine_detail": fine}
    return Question(kind, text, answer, frozenset(name for name, holds in marks.items() if holds))


def _existence(scene: Scene, draw: Draw) -> Question | None:
    present = {(thing.colour, thing.shape) for thing in scene.things}
    colours, shapes = {colour for colour, _ in present}, {shape for _, shape in present}
    single = draw.chance(0.25)  # a quarter asks for a shape or a colour alone
    options: list[tuple[str | None, str | None]]
    if draw.chance(0.5):
        answer = "yes"
        if single:
            options = [(None, shape) for shape in sorted(shapes)] + [(colour, None) for colour in sorted(colours)]
        else:
            options = sorted(present)
    else:
        answer = "no"
        pairs = [(colour, shape) for colour in COLOUR_NAMES for shape in SHAPES if (colour, shape) not in present]
        if single:
            options = [(None, shape) for shape in SHAPES if shape not in shapes]
            options += [(colour, None) for colour in COLOUR_NAMES if colour not in colours]
        elif draw.chance(0.7):
            options = [(colour, shape) for colour, shape in pairs if colour in colours and shape in shapes]
        else:
            options = [(colour, shape) for colour, shape in pairs if colour in colours]
    if not options:
        return None
    colour, shape = draw.choice(options)
    x = _phrase(colour, shape, draw)
    about = [thing for thing in scene.things if thing.colour == colour and thing.shape == shape]
    return _question(scene, draw, "existence", answer, about[:1], x=x, a=article(x))


def _groups(scene: Scene) -> dict[tuple[str | None, str | None], int]:
    """How many things there are of every colour, of every shape and in all."""
    found: dict[tuple[str | None, str | None], int] = {(None, None): len(scene.things)}
    for colour in COLOUR_NAMES:
        found[colour, None] = sum(thing.colour == colour for thing in scene.things)
    for shape in SHAPES:
        found[None, shape] = sum(thing.shape == shape for thing in scene.things)
    return found


def _counting(scene: Scene, draw: Draw) -> Question | None:
    groups = _groups(scene)
    # First the number, then who has it: otherwise most answers would be 0 and 1.
    number = draw.choice(sorted(set(groups.values())))
    colour, shape = draw.choice([group for group, size in groups.items() if size == number])
    return _question(scene, draw, "counting", str(number), xs=_phrase(colour, shape, draw, plural=True))


def _colour(scene: Scene, draw: Draw) -> Question | None:
    options = [reference for reference in _references(scene) if reference.colour is None]
    if not options:
        return None
    chosen = draw.choice(options)
    return _question(scene, draw, "colour", chosen.thing.colour, [chosen.thing], x=chosen.phrase(draw))


def _shape(scene: Scene, draw: Draw) -> Question | None:
    options = [reference for reference in _references(scene) if reference.shape is None]
    if not options:
        return None
    chosen = draw.choice(options)
    fine = chosen.thing.radius < SMALL_RADIUS
    return _question(scene, draw, "shape", chosen.thing.shape, [chosen.thing], fine=fine, x=chosen.phrase(draw))


def _where(scene: Scene, draw: Draw) -> Question | None:
    third = IMAGE_SIZE / 3

    def is_clear(thing: Thing) -> bool:
        return all(abs(value - line) > 7 for value in (thing.x, thing.y) for line in (third, 2 * third))

    options = [reference for reference in _references(scene) if is_clear(reference.thing)]
    if not options:
        return None
    chosen = draw.choice(options)
    return _question(scene, draw, "where", chosen.thing.cell, [chosen.thing], x=chosen.phrase(draw))


def _two(scene: Scene, draw: Draw, fits: Callable[[Thing, Thing], bool]) -> tuple[_Reference, _Reference] | None:
    references = _references(scene)
    for _ in range(12):
        if len(references) < 2:
            return None
        one, other = draw.sample(references, 2)
        if one.thing != other.thing and fits(one.thing, other.thing):
            return one, other
    return None


def _relation(scene: Scene, draw: Draw) -> Question | None:
    word = draw.choice(("left", "right", "above", "below"))
    axis = "x" if word in ("left", "right") else "y"
    pair = _two(scene, draw, lambda one, other: abs(getattr(one, axis) - getattr(other, axis)) > 18)
    if pair is None:
        return None
    one, other = pair
    is_less = getattr(one.thing, axis) < getattr(other.thing, axis)
    answer = "yes" if is_less == (word in ("left", "above")) else "no"
    things = [one.thing, other.thing]
    x, y = one.phrase(draw), other.phrase(draw)
    return _question(scene, draw, "relation", answer, things, template=word, x=x, y=y)


def _nearest(scene: Scene, draw: Draw) -> Question | None:
    options = []
    for reference in _references(scene):
        here = reference.thing
        others = sorted((math.hypot(t.x - here.x, t.y - here.y), i) for i, t in enumerate(scene.things) if t != here)
        if len(others) >= 2 and others[1][0] > 1.25 * others[0][0]:
            options.append((reference, scene.things[others[0][1]]))
    if not options:
        return None
    reference, target = draw.choice(options)
    asked = draw.choice(("colour", "shape"))
    answer = target.colour if asked == "colour" else target.shape
    x = reference.phrase(draw)
    return _question(scene, draw, "nearest", answer, [reference.thing, target], template=f"nearest {asked}", x=x)


def _comparing(scene: Scene, draw: Draw) -> Question | None:
    wants_yes = draw.chance(0.5)
    answer = "yes" if wants_yes else "no"
    if draw.chance(0.5):
        pair = _two(scene, draw, lambda one, other: one.radius > 1.3 * other.radius)
        if pair is None:
            return None
        one, other = pair if wants_yes else (pair[1], pair[0])
        things, x, y = [one.thing, other.thing], one.phrase(draw), other.phrase(draw)
        return _question(scene, draw, "comparing", answer, things, template="bigger", x=x, y=y)
    groups = {group: size for group, size in _groups(scene).items() if group != (None, None) and size > 0}
    pairs = [
        (more, less)
        for more in groups
        for less in groups
        if groups[more] > groups[less] and (more[0] is None) == (less[0] is None)
    ]
    if not pairs:
        return None
    more, less = draw.choice(pairs)
    first, second = (more, less) if wants_yes else (less, more)
    xs, ys = _phrase(*first, draw, plural=True), _phrase(*second, draw, plural=True)
    return _question(scene, draw, "comparing", answer, template="more", xs=xs, ys=ys)


def _reading(scene: Scene, draw: Draw) -> Question | None:
    return None if scene.sign is None else _question(scene, draw, "reading", scene.sign.text, fine=True)


def _caption(scene: Scene, draw: Draw) -> Question | None:
    largest = sorted(scene.things, key=lambda thing: -thing.radius)[:3]
    names = [f"{article(thing.colour)} {thing.colour} {thing.shape}" for thing in largest]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return _question(scene, draw, "caption", listed, largest)


_MAKERS: dict[str, Callable[[Scene, Draw], Question | None]] = {
    "existence": _existence,
    "counting": _counting,
    "colour": _colour,
    "shape": _shape,
    "where": _where,
    "relation": _relation,
    "nearest": _nearest,
    "comparing": _comparing,
    "reading": _reading,
    "caption": _caption,
}
QUESTION_TYPES = tuple(_MAKERS)


def questions(scene: Scene, seed: int = 0, types: Sequence[str] = QUESTION_TYPES, per_type: int = 1) -> list[Question]:
    """Ask about a scene.

    Parameters
    ----------
    scene : Scene
        From ``adaptprune.tabletop.scene``.
    seed : int
        Another seed asks other questions about the same scene.
    types : sequence of str
        Entries of ``QUESTION_TYPES``; repeats ask for more of that type.
    per_type : int
        Questions wanted for every entry of ``types``.

    Returns
    -------
    list of Question
        No question twice; fewer than asked for where a type does not fit the scene.

    Raises
    ------
    ValueError
        If a type is unknown.
    """
    draw = Draw(scene_seed(scene.split, scene.index) + 1 + 7919 * seed)
    found: dict[str, Question] = {}
    for name in types:
        if name not in _MAKERS:
            raise ValueError(f"unknown question type {name!r}: choose from {', '.join(QUESTION_TYPES)}")
        made = 0
        for _ in range(3 * per_type):
            question = _MAKERS[name](scene, draw)
            if question is not None and question.question not in found:
                found[question.question] = question
                made += 1
            if made == per_type:
                break
    return list(found.values())


def pair_question(first: Scene, second: Scene, seed: int = 0) -> Question | None:
    """Ask which of two pictures holds something; None where each holds all that the other does."""
    draw = Draw(scene_seed(first.split, first.index) + 3 * second.index + 104729 * seed)
    one, two = ({(thing.colour, thing.shape) for thing in picture.things} for picture in (first, second))
    answer, options = draw.choice([("first", sorted(one - two)), ("second", sorted(two - one))])
    if not options:
        return None
    x = _phrase(*draw.choice(options), draw)
    return _question(first, draw, "two_images", answer, x=x, a=article(x))


def is_right(answer: str, expected: str) -> bool:
    """Exact match, but for case, spaces at the ends and a final full stop."""
    return answer.strip().rstrip(".").strip().lower() == expected.lower()
