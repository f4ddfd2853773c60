"""What docs/serving.md shows is what happens."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import openai
import pytest

import adaptprune
from adaptprune.cli import gateway, serve
from adaptprune.engines.batch.engine import Engine
from adaptprune.images import open_image
from tests.serving import live

TEXT = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()


@pytest.mark.parametrize("module", [serve, gateway])
def test_every_option_is_described(module):
    for name in inspect.signature(module.command).parameters:
        assert f"`--{name.replace('_', '-')}`" in TEXT, name


def test_every_option_that_is_described_exists():
    known = {name for module in (serve, gateway) for name in inspect.signature(module.command).parameters}
    for name in re.findall(r"`--([a-z0-9-]+)[^`]*`", TEXT):
        assert name.replace("-", "_") in known, name


def test_every_error_code_is_described():
    package = Path(adaptprune.__file__).parent
    folders = (package / "serve", package / "engines", package / "engines" / "batch", package / "prompts")
    source = "".join(path.read_text() for folder in folders for path in folder.glob("*.py"))
    codes = set(re.findall(r'(?:ServeError\(\s*\d+,|EngineError\()\s*"(\w+)"', source))
    codes |= set(re.findall(r'"(\w+_exceeded|bad_\w+|in?valid_\w+|unknown_\w+|unsupported_\w+|missing_\w+)"', source))
    codes = {code for code in codes if not code.endswith(("_error", "_request"))}
    assert len(codes) > 15
    for code in codes:
        assert f"`{code}`" in TEXT, code


def test_the_examples_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    open_image("example:cloth").save("photo.png")
    client, engine = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    with live(Engine("pocket", *adaptprune.load())) as server:
        original = openai.OpenAI
        monkeypatch.setattr(
            openai, "OpenAI", lambda base_url, api_key: original(base_url=f"{server.url}/v1", api_key=api_key)
        )
        exec(client, {})
    assert capsys.readouterr().out.splitlines()[:2] == ["orange", "57 of 576"]
    exec(engine, {})
    assert capsys.readouterr().out.splitlines()[:2] == ["orange", "57 of 576"]
    assert (tmp_path / "overlay.png").stat().st_size > 1000
