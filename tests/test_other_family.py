"""A family from another package: an installed distribution with an entry point, as CONTRIBUTING.md shows it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adaptprune.hooks.seams.catalogue import image_text_types

ROOT = Path(__file__).parent.parent

SCRIPT = """
import json, torch, adaptprune
from adaptprune.testing.shapes import shape

before = "other_family" in __import__("sys").modules
one = shape("emu3")
with torch.no_grad(), adaptprune.prune(one.model, "random", keep_ratio=0.25, layer=2) as report:
    one.model.generate(**one.inputs, max_new_tokens=3)
sample = report.samples[0]
print(json.dumps({"kept": sample.num_kept, "of": sample.num_visual, "grids": sample.grids, "tier": report.tier,
                  "placeholders": int((one.inputs["input_ids"] == one.image_token_id).sum()), "notes": report.notes,
                  "known": "emu3" in adaptprune.list_families(), "imported early": before}))
"""


@pytest.mark.skipif("emu3" not in image_text_types(), reason="this transformers has no Emu3")
def test_another_package_adds_a_family(tmp_path):
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    section = guide[guide.index("## A model type in ten minutes") :]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    (tmp_path / "other_family.py").write_text(code)
    info = tmp_path / "other_family-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[adaptprune.families]\nemu3 = other_family:Emu3\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    rows = sum(rows for _, rows, _ in found["grids"])
    assert found["of"] == sum(rows * columns for _, rows, columns in found["grids"]) == found["placeholders"] - rows
    assert found["kept"] == sum(max(1, rows * columns // 4) for _, rows, columns in found["grids"])
    assert (found["tier"], found["known"], found["imported early"], found["notes"]) == ("checked", True, False, [])
