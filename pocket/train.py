"""All stages in one command: ``python -m pocket.train --out RUN_DIR``.

Contract: the same seed and plan give the same run on the same machine; a killed run goes on from its last checkpoint
when the command is repeated. The log is ``RUN_DIR/log.jsonl``.
"""

import argparse
from pathlib import Path

import torch

from pocket.export import export
from pocket.train_language import LanguagePlan, Phase, train_language
from pocket.train_tower import TowerPlan, train_tower

EASY = ("existence", "colour", "shape")
HARDER = (*["existence"] * 3, "colour", "shape")  # existence takes longest of the three
SINGLE = (*["existence"] * 14, "colour", "shape")
MORE = (*EASY, "where", "counting")
FOCUS = (*EASY, "existence", *["where"] * 3, "counting", "counting")
ALL = (*MORE, "relation", "nearest", "comparing", "reading")
# relation and comparing stay at chance in the time of this plan and would only add noise at the end
FINAL = (*["existence"] * 4, *["colour", "shape", "where", "counting"] * 2, "nearest", *["reading"] * 3)
WIDE = (*ALL, "existence", "where", "counting", "relation", "nearest", "comparing", "reading")

PLANS = {
    "v1": (
        TowerPlan(steps=2000),
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
    # seconds, not minutes: to see that the code runs
    "tiny": (
        TowerPlan(steps=3, crops_per_step=4, full_per_step=1),
        LanguagePlan(
            phases=(
                Phase(1, 24, EASY, 1, 2),
                Phase(1, 576, EASY, 1, 1, fresh=True),
                Phase(1, 576, EASY, 1, 1, fresh=True, joint=True),
            ),
            cached=10,
        ),
    ),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/pocket"), help="run folder")
    parser.add_argument("--plan", choices=sorted(PLANS), default="v1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", type=Path, help="write the finished model here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tower_plan, language_plan = PLANS[options.plan]
    seer = train_tower(options.out, tower_plan, options.seed)
    train_language(options.out, language_plan, seer, options.seed)
    if options.export:
        export(options.out, options.export)


if __name__ == "__main__":
    main()
