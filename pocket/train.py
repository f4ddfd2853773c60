"""All stages in one command: ``python -m pocket.train --out RUN_DIR``.

Contract: the same seed and plan give the same run on the same machine; a killed run goes on from its last checkpoint
when the command is repeated. The log is ``RUN_DIR/log.jsonl``.
"""

import argparse
from pathlib import Path

import torch

from pocket.architectures import ARCHITECTURES
from pocket.export import export
from pocket.plans import PLANS, LanguagePlan
from pocket.train_language import train_language
from pocket.train_tower import TowerWithHeads, train_tower
from pocket.trainer import PocketTrainer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/pocket"), help="run folder")
    parser.add_argument("--plan", choices=sorted(PLANS), default="pocket")
    parser.add_argument("--seed", type=int, help="default: the plan's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help='where to train, for example "cuda"')
    parser.add_argument("--export", type=Path, help="write the finished model here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plan = PLANS[options.plan]
    seed = plan.seed if options.seed is None else options.seed
    torch.manual_seed(seed)
    seer, trainer, name = TowerWithHeads(ARCHITECTURES[plan.architecture]), None, ""
    for name, stage in plan.stages:
        if isinstance(stage, LanguagePlan):
            torch.manual_seed(seed + 1)
            trainer = trainer or PocketTrainer(seer)
            train_language(options.out, stage, trainer, name, options.device)
        else:
            train_tower(options.out, stage, seer, name, options.device)
    if options.export:
        export(options.out, options.export, options.plan, f"{name}.pt")


if __name__ == "__main__":
    main()
