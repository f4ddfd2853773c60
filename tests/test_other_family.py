"""A family from another package: an installed distribution with an entry point, as CONTRIBUTING.md shows it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

SCRIPT = """
import json, torch, adaptprune
from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration
from adaptprune.testing.specimen import IMAGE, build, clip, text
import transformers as hf

before = "other_family" in __import__("sys").modules
config = VipLlavaConfig(vision_config=clip(), text_config=text(hf.LlamaConfig), image_token_index=IMAGE,
                        vision_feature_layers=[-2, -1])
model = build(VipLlavaForConditionalGeneration, config, "sdpa")
ids = torch.tensor([[60, 61, *[IMAGE] * 16, 62, 63, 64]])
inputs = {"input_ids": ids, "pixel_values": torch.rand(1, 3, 28, 28)}
with torch.no_grad(), adaptprune.prune(model, "adaptprune", keep_ratio=0.25) as report:
    model.generate(**inputs, max_new_tokens=3)
print(json.dumps({"kept": report.num_kept, "of": report.num_visual, "lengths": report.kv_lengths,
                  "names": adaptprune.list_families(), "imported early": before}))
"""


def test_another_package_adds_a_family(tmp_path):
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    section = guide[guide.index("## A new family") :]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    (tmp_path / "other_family.py").write_text(code)
    info = tmp_path / "other_family-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[adaptprune.families]\nvipllava = other_family:VipLlava\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "vipllava" in found.pop("names")
    assert found == {"kept": 4, "of": 16, "lengths": [21, 21, 9, 9, 9, 9], "imported early": False}
