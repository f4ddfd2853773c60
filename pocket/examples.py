"""The example pictures of the package: chosen by hand from the test split, kept only if the model answers them.

Contract: ``python -m pocket.examples`` writes PNG files and ``examples.json`` and fails if an answer is wrong.
"""

import argparse
import json
from pathlib import Path

import adaptprune
from adaptprune.tabletop import Question, is_right, render, scene
from pocket.evaluate import answer

# index in the test split, file name, question, answer
CHOSEN = (
    (5, "wood.png", "Is there a cyan circle?", "yes"),
    (22, "slate.png", "What shape is the pink object?", "cross"),
    (19, "cloth.png", "What colour is the triangle?", "orange"),
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("adaptprune/assets/pocket"))
    parser.add_argument("--out", type=Path, default=Path("adaptprune/assets/examples"))
    options = parser.parse_args()
    model, processor = adaptprune.load(str(options.model), device="cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, file, question, expected in CHOSEN:
        (given,) = answer(model, processor, "test", [(index, Question("", question, expected))], 1)
        if not is_right(given, expected):
            raise ValueError(
                f"test scene {index}: {question} gives {given!r}, not {expected!r}; choose another question"
            )
        render(scene("test", index)).save(options.out / file, optimize=True)
        entries.append({"file": file, "split": "test", "index": index, "question": question, "answer": expected})
    (options.out / "examples.json").write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()
