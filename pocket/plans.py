"""The plans: what is trained when, and on what. ``PLANS["pocket"]`` is the sequence that was run for that model."""

from dataclasses import dataclass
from typing import Any

from pocket.train_tower import TowerPlan


@dataclass(frozen=True)
class Phase:
    """Some steps with fixed question types and number of visual tokens."""

    steps: int
    tokens: int
    types: tuple[str, ...]
    per_type: int
    pictures: int
    fresh: bool = False  # render and look at new pictures instead of reading cached features
    first: int = 0  # added to the step where fresh pictures are chosen
    joint: bool = False  # train the tower too
    simple: bool = False  # of existence questions, only those about a colour or a shape alone
    blind: bool = False  # hide the picture from the text in the first BLIND_LAYERS layers
    rates: tuple[float, float] = (1.0, 1.0)  # factor on the learning rates at start and end
    pairs: int = 0  # rows of two pictures with questions about both
    pair_every: int = 1  # steps from one with such rows to the next
    stress: bool = False  # weigh the answers to hard questions more
    many: bool = False  # counts other than 1 weigh more
    mentions: bool = False  # the phrases of a question must be looked up before the answer is due


@dataclass(frozen=True)
class LanguagePlan:
    """All phases of the language model."""

    phases: tuple[Phase, ...]
    cached: int = 2400
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    tower_share: float = 0.1  # the tower's rates in the joint phases, relative to its own stage
    align_weight: float = 0.3
    mention_weight: float = 1.0
    centres: bool = False  # tell centres of things from the rest of them, and compare two phrases at the second
    areas: bool = False  # tell how many patches a thing has
    shares: bool = False  # tell the share of its thing that a patch stands for, and count once more one layer later
    looks: bool = False  # look where the words point
    look_weight: float = 0.5  # of both
    looking_share: float = 0.5  # rate of queries and keys that are not normalised, relative to other matrices
    place_weight: float = 1.0  # of knowing where a visual token is, if the tower does not
    measure_weight: float = 0.3
    warmup: int = 50
    half: bool = False  # matrix products in bfloat16
    features: str = ""  # stage whose cached features are read, if not its own
    detail: bool = False  # of the tower's loss in the joint phases
    save_every: int = 50
    validate_every: int = 100


@dataclass(frozen=True)
class Plan:
    """A model: its architecture, its seed and its stages by name, one after another."""

    architecture: str
    stages: tuple[tuple[str, TowerPlan | LanguagePlan], ...]
    seed: int = 0


EASY = ("existence", "colour", "shape")
HARDER = (*["existence"] * 3, "colour", "shape")  # existence takes longest of the three
SINGLE = (*["existence"] * 14, "colour", "shape")
MORE = (*EASY, "where", "counting")
FOCUS = (*EASY, "existence", *["where"] * 3, "counting", "counting")
ALL = (*MORE, "relation", "nearest", "comparing", "reading")
# relation and comparing stay at chance in the time of this plan and would only add noise at the end
FINAL = (*["existence"] * 4, *["colour", "shape", "where", "counting"] * 2, "nearest", *["reading"] * 3)
WIDE = (*ALL, "existence", "where", "counting", "relation", "nearest", "comparing", "reading")

# language-2: every type at once
EVERY = (*EASY, "where", *["counting", "relation", "nearest", "comparing"] * 2, "reading", "caption")
HEAVY = (*EASY, "where", *["relation"] * 4, *["counting", "nearest", "comparing"] * 3, "reading", "caption")
COUNTING = (*EASY, "where", *["counting", "nearest"] * 4, *["relation"] * 3, *["comparing"] * 2, "reading", "caption")
LAST = (*EASY, "where", *["counting", "nearest"] * 5, *["relation", "comparing"] * 2, "reading", "caption")
SUMS = (*EASY, "where", *["counting", "nearest"] * 4, "relation", "comparing", "reading")
MORE_SUMS = (*EASY, "where", *["counting"] * 6, *["nearest"] * 4, "relation", *["comparing"] * 2, "reading", "caption")
HARD: dict[str, Any] = {
    "blind": True,
    "mentions": True,
    "pairs": 1,
    "pair_every": 2,
    "stress": True,
    "many": True,
}
PLAIN = {**HARD, "blind": False, "pair_every": 4}
POINTED: dict[str, Any] = {
    "centres": True,
    "areas": True,
    "shares": True,
    "looks": True,
    "measure_weight": 1.0,
    "tower_share": 0.2,
    "detail": True,
    "warmup": 25,
}

POCKET: tuple[tuple[str, TowerPlan | LanguagePlan], ...] = (
    ("tower", TowerPlan(steps=2000)),
    (
        "language",
        LanguagePlan(
            phases=(
                Phase(300, 24, EASY, 4, 12, blind=True),
                Phase(200, 48, HARDER, 2, 12, blind=True),
                Phase(100, 24, SINGLE, 2, 12, simple=True, blind=True),
                Phase(100, 24, SINGLE, 2, 12, simple=True),
                Phase(300, 32, HARDER, 2, 12),
                Phase(80, 576, HARDER, 2, 6, fresh=True),
                Phase(220, 64, MORE, 3, 12),
                Phase(200, 40, FOCUS, 2, 12),
                Phase(500, 64, WIDE, 1, 12),
                Phase(300, 576, FINAL, 1, 6, fresh=True, rates=(1.0, 0.5)),
                Phase(150, 576, FINAL, 1, 6, fresh=True, joint=True, rates=(0.5, 0.02)),
            )
        ),
    ),
    (
        "tower-2",
        TowerPlan(
            steps=1450,
            crops=2,
            first_scene=2_000_000,
            detail=True,
            full_share=0.18,
            peak=0.6,
            hold=0.2,
            validate_every=250,
            stop=1000,
        ),
    ),
    (
        "tower-3",
        TowerPlan(
            steps=700,
            crops=2,
            first_scene=3_000_000,
            detail=True,
            place=True,
            ramps=True,
            full_share=0.3,
            peak=0.4,
            hold=0.3,
            validate_every=100,
            save_every=100,
        ),
    ),
    (
        "language-2",
        LanguagePlan(
            phases=(Phase(500, 64, EVERY, 1, 8, blind=True, mentions=True, pairs=1),),
            cached=3000,
        ),
    ),
    (
        "language-3",
        LanguagePlan(
            phases=(
                Phase(300, 64, EVERY, 1, 8, blind=True, mentions=True, pairs=1),
                Phase(300, 64, HEAVY, 1, 6, blind=True, mentions=True, pairs=1, stress=True, rates=(1.0, 5 / 6)),
                Phase(300, 64, COUNTING, 1, 6, **HARD, rates=(5 / 6, (5 / 6 + 0.35) / 2)),
                Phase(100, 160, COUNTING, 1, 6, **HARD, rates=(0.6, 0.6 - 0.1 / 3)),
                Phase(100, 576, LAST, 1, 4, fresh=True, **PLAIN, rates=(0.55, 0.444)),
                Phase(50, 576, LAST, 1, 4, fresh=True, **PLAIN, rates=(0.444, 0.444 - 0.424 * 50 / 370)),
            ),
            cached=3000,
            features="language-2",
            centres=True,
            detail=True,
        ),
    ),
    (
        "language-4",
        LanguagePlan(
            phases=(
                Phase(100, 576, LAST, 1, 4, fresh=True, first=1200, **PLAIN, rates=(0.5, 0.35)),
                Phase(130, 576, LAST, 1, 4, fresh=True, first=1200, **PLAIN, rates=(0.35, 0.01)),
            ),
            cached=3000,
            features="language-2",
            centres=True,
            areas=True,
            detail=True,
            warmup=10,
        ),
    ),
    (
        "tower-4",
        TowerPlan(
            steps=1600,
            first_scene=4_000_000,
            detail=True,
            place=True,
            sums=True,
            full_share=1.0,
            peak=0.5,
            hold=0.3,
            validate_every=200,
            save_every=100,
        ),
    ),
    (
        "language-5",
        LanguagePlan(
            phases=(Phase(550, 576, SUMS, 1, 4, fresh=True, first=1430, joint=True, **PLAIN, rates=(0.5, 0.4725)),),
            look_weight=1.0,
            validate_every=200,
            **POINTED,
        ),
    ),
    (
        "language-6",
        LanguagePlan(
            phases=(
                Phase(2500, 576, MORE_SUMS, 1, 4, fresh=True, first=1980, joint=True, **PLAIN, rates=(0.45, 0.01)),
            ),
            look_weight=2.0,
            validate_every=250,
            **POINTED,
        ),
    ),
)

# What all of Qwen's language stages have in common: everything is looked up from the start, and no attention is taught.
LOOKED_UP: dict[str, Any] = {"mentions": True, "many": True}
STRESSED: dict[str, Any] = {**LOOKED_UP, "stress": True, "pairs": 1}
HIDDEN: dict[str, Any] = {**STRESSED, "blind": True, "pair_every": 2}
OPEN: dict[str, Any] = {**STRESSED, "fresh": True, "pair_every": 4}
KNOWING: dict[str, Any] = {"centres": True, "shares": True, "measure_weight": 1.0, "detail": True, "half": True}
FIRST = (*EASY, "where", "counting", "reading")
MOST_TYPES = (*EASY, "where", *["counting", "relation", "nearest", "comparing"] * 2, "reading")

QWEN: tuple[tuple[str, TowerPlan | LanguagePlan], ...] = (
    (
        "tower",
        TowerPlan(
            steps=2000,
            crops_per_step=12,
            first_scene=10_000_000,
            detail=True,
            sums=True,
            full_share=0.12,
            full_per_step=3,
            half=True,  # of the run: from step 900 on
            validate_every=300,
            save_every=100,
        ),
    ),
    (
        "language",
        LanguagePlan(
            phases=(
                Phase(200, 24, EASY, 4, 12, blind=True, **LOOKED_UP),
                Phase(250, 48, FIRST, 3, 10, blind=True, **LOOKED_UP),
                Phase(700, 64, MOST_TYPES, 1, 8, **HIDDEN, rates=(0.9, 0.5)),
                Phase(150, 160, EVERY, 1, 6, **HIDDEN, rates=(0.5, 0.45)),
                Phase(250, 576, LAST, 1, 4, **OPEN, rates=(0.45, 0.35)),
            ),
            cached=1600,
            **KNOWING,
        ),
    ),
    (
        "language-2",
        LanguagePlan(
            phases=(
                Phase(600, 576, LAST, 1, 4, **OPEN, first=2000, rates=(0.35, 0.25)),
                Phase(800, 576, MORE_SUMS, 1, 4, **OPEN, first=2000, joint=True, rates=(0.25, 0.01)),
            ),
            tower_share=0.2,
            warmup=25,
            validate_every=200,
            **KNOWING,
        ),
    ),
)

TINY: tuple[tuple[str, TowerPlan | LanguagePlan], ...] = (
    ("tower", TowerPlan(steps=3, crops_per_step=4, full_per_step=1)),
    (
        "language",
        LanguagePlan(
            phases=(
                Phase(1, 24, EASY, 1, 2),
                Phase(1, 48, EVERY, 1, 2, blind=True, mentions=True, pairs=1),
                Phase(1, 576, EASY, 1, 1, fresh=True),
                Phase(1, 576, EASY, 1, 1, fresh=True, joint=True),
            ),
            cached=10,
            centres=True,
            shares=True,
            detail=True,
        ),
    ),
)

PLANS: dict[str, Plan] = {
    "pocket": Plan("llava", POCKET),
    "qwen": Plan("qwen", QWEN, seed=1),
    # seconds, not minutes: to see that the code runs
    "tiny": Plan("llava", TINY),
    "tiny-qwen": Plan("qwen", TINY),
}
