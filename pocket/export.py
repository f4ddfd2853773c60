"""Export: from a run folder to an ordinary Hugging Face folder that plain ``from_pretrained`` loads offline.

Contract: ``python -m pocket.export --run RUN_DIR --out DIR``. Weights are stored in float16 while the configuration
names float32, so that loading without a dtype computes in float32: on a CPU that is the faster and safer choice.
"""

import argparse
import json
from pathlib import Path

import torch

from pocket.architectures import ARCHITECTURES
from pocket.plans import PLANS
from pocket.runs import load
from pocket.train_tower import TowerWithHeads
from pocket.trainer import PocketTrainer


def export(run: Path, out: Path, plan: str = "pocket", checkpoint: str | None = None) -> None:
    """Write model, processor and configuration of a checkpoint, the plan's last one if none is named, to ``out``."""
    checkpoint = checkpoint or f"{PLANS[plan].stages[-1][0]}.pt"
    state = load(run / checkpoint)
    if state is None:
        raise ValueError(f"no checkpoint {checkpoint} in {run}: train first with python -m pocket.train --out {run}")
    architecture = ARCHITECTURES[PLANS[plan].architecture]
    trainer = PocketTrainer(TowerWithHeads(architecture))
    trainer.load_state_dict(state["model"])
    architecture.finish(trainer.model)
    model = trainer.model.to(torch.float16)
    model.save_pretrained(out)
    architecture.save_processor(out)
    path = out / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    path = out / "generation_config.json"
    generation = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in generation.items() if not k.startswith("output_")}, indent=2) + "\n")

    for file in out.iterdir():
        file.chmod(0o644)  # weights are written readable by their owner only, which an installed package must not be


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/pocket"))
    parser.add_argument("--out", type=Path, default=Path("adaptprune/assets/pocket"))
    parser.add_argument("--plan", choices=sorted(PLANS), default="pocket")
    parser.add_argument("--checkpoint", help="file in the run folder. Default: that of the plan's last stage")
    options = parser.parse_args()
    export(options.run, options.out, options.plan, options.checkpoint)


if __name__ == "__main__":
    main()
