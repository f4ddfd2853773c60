"""All stages in one command: ``python -m pocket.train --out RUN_DIR``.

Contract: the same seed and plan give the same run on the same machine; a killed run goes on from its last checkpoint
when the command is repeated. The log is ``RUN_DIR/log.jsonl``.
"""

import argparse
from pathlib import Path

import torch

from pocket.export import export
from pocket.plans import PLANS
from pocket.train_language import train_language
from pocket.train_tower import TowerPlan, train_tower


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/pocket"), help="run folder")
    parser.add_argument("--plan", choices=sorted(PLANS), default="pocket")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", type=Path, help="write the finished model here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seer, trainer, stage = None, None, ""
    for stage, plan in PLANS[options.plan]:
        if isinstance(plan, TowerPlan):
            seer = train_tower(options.out, plan, options.seed, stage, seer)
        else:
            trainer = train_language(options.out, plan, trainer or seer, options.seed, stage)
            seer = trainer.seer
    if options.export:
        export(options.out, options.export, f"{stage}.pt")


if __name__ == "__main__":
    main()
