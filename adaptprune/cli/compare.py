"""`adaptprune compare`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from adaptprune.cli.app import print_json, stderr, stdout
from adaptprune.cli.loading import loading_options, say_notice
from adaptprune.cli.outputs import check_output, save_picture
from adaptprune.cli.quiet import progress_bars

if TYPE_CHECKING:
    from adaptprune.compare import Compared


@loading_options
def command(
    prompt: str = typer.Option(..., "--prompt", "-p", help="The question."),
    image: list[str] = typer.Option(..., "--image", "-i", help="Path or http(s) address; several are allowed."),
    loading: Any = None,
    methods: list[str] = typer.Option(
        ["adaptprune,fastv,random"], "--methods", "-m", help="Rules, by commas; name or name:option=value."
    ),
    keep_ratio: float = typer.Option(None, help="Fraction of visual tokens kept, above 0 and at most 1."),
    num_keep: int = typer.Option(None, help="Visual tokens kept per image, in place of --keep-ratio."),
    layer: int = typer.Option(None, help="Prune before this decoder layer."),
    max_new_tokens: int = typer.Option(64, help="Length limit of an answer."),
    rounds: int = typer.Option(3, help="Answers whose times count; one more comes before them."),
    sheet: Path = typer.Option(None, help="Write what each rule kept and how it ranked, side by side (PNG)."),
    page: Path = typer.Option(None, help="Write the same as a page in one file (HTML)."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Ask one question under several rules: answers, tokens and times side by side, and pictures of what was kept."""
    from adaptprune.checks import whole
    from adaptprune.compare import compare, names_of, plan
    from adaptprune.engines.sampling import Sampling
    from adaptprune.images import open_image

    whole("rounds", rounds, 1, 1000)
    rows = plan(names_of(methods), keep_ratio, num_keep, layer)
    for path, option, end in ((sheet, "--sheet", ".png"), (page, "--page", ".html")):
        check_output(path, option, end)
    sampling = Sampling(max_new_tokens, 0.0)
    sampling.check()
    images = [open_image(source) for source in image]
    from adaptprune.engines.local import LocalEngine
    from adaptprune.models import load

    progress_bars(not as_json)
    engine = LocalEngine(*load(**loading), explain=sheet is not None or page is not None)
    say_notice(engine.model)
    with Progress(console=stderr, transient=True, disable=as_json) as bar:
        task = bar.add_task("answering", total=len(rows) * (rounds + 1))
        compare(engine, prompt, images, rows, sampling, rounds, lambda: bar.advance(task))
    _write(rows, prompt, images, engine.name, sheet, page)
    if as_json:
        print_json({"prompt": prompt, "images": image, "model": engine.name, "rules": [row.to_dict() for row in rows]})
    else:
        _show(rows)
    if all(row.error is not None for row in rows[1:]):
        raise typer.Exit(1)


command.__name__ = "compare"


def _write(
    rows: Sequence[Compared], prompt: str, images: Sequence[Any], model: str, sheet: Path | None, page: Path | None
) -> None:
    if sheet is not None:
        from adaptprune.compare.sheet import sheet as drawn

        save_picture(drawn(rows, prompt, images), sheet)
    if page is not None:
        from adaptprune.compare.page import page as written
        from adaptprune.disk import write_text

        write_text(page, written(rows, prompt, images, model))


def _show(rows: Sequence[Compared]) -> None:
    table = Table("method", "answer", "kept", "first token", "whole answer")
    for row in rows:
        cells = [f"{each:.0f} ms" for each in row.medians] if row.medians else ["-", "-"]
        kept = f"{row.kept[0]} of {row.kept[1]}" if row.kept else "-" if row.error else "all"
        text = row.error or (row.answer.text if row.answer is not None else "")
        table.add_row(escape(row.title), escape(text), kept, *cells)
    stdout.print(table)
