"""`adaptprune tabletop`"""

from __future__ import annotations

from pathlib import Path

import typer
from rich.progress import Progress

from adaptprune.cli.app import print_json, stderr, stdout
from adaptprune.disk import make_folder, writing
from adaptprune.errors import AdaptPruneError
from adaptprune.registry import did_you_mean

FORMATS = ("llava", "datasets")


def command(
    out: Path = typer.Option(..., help="Folder to write to."),
    split: str = typer.Option("test", help="train, validation, test, hard or plain."),
    pictures: int = typer.Option(2000, help="How many pictures."),
    form: str = typer.Option("llava", "--format", help="llava (question and answer jsonl) or datasets (imagefolder)."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Write Tabletop's pictures and questions to files."""
    from adaptprune.tabletop import SPLITS
    from adaptprune.tabletop.export import export_datasets, export_llava

    if form not in FORMATS:
        raise AdaptPruneError(f"unknown format {form!r}.{did_you_mean(form, FORMATS)}")
    if split not in SPLITS:
        raise AdaptPruneError(f"unknown split {split!r}.{did_you_mean(split, SPLITS)}")
    if pictures < 1:
        raise AdaptPruneError(f"pictures={pictures} is not allowed: use 1 or more.")
    if out.exists() and not out.is_dir():
        raise AdaptPruneError(f"{str(out)!r} is a file: name a folder.")
    make_folder(out)
    with Progress(console=stderr) as bar:
        line = bar.add_task("pictures", total=pictures)
        export = export_llava if form == "llava" else export_datasets
        with writing(out):
            written = export(out, split, pictures, lambda: bar.advance(line))
    files = [str(path) for path in (written if isinstance(written, tuple) else (written,))]
    if as_json:
        print_json({"files": files, "pictures": pictures, "split": split})
    else:
        stdout.print(f"{pictures} pictures; {', '.join(files)}")


command.__name__ = "tabletop"
