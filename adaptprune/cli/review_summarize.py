"""`adaptprune review summarize`"""

from __future__ import annotations

from pathlib import Path

import typer

from adaptprune.cli.app import print_json
from adaptprune.cli.review_options import JSON, show
from adaptprune.errors import AdaptPruneError


def command(
    reviews: list[Path] = typer.Argument(..., help="Files of reviews; LLaVA's own too."),
    as_markdown: bool = typer.Option(False, "--markdown", help="Print Markdown."),
    as_json: bool = JSON,
) -> None:
    """Scores per category or capability, with 95 % intervals, and how many reviews failed."""
    from adaptprune.review import summarize
    from adaptprune.review.report import markdown

    if as_json and as_markdown:
        raise AdaptPruneError("--json and --markdown are both given: choose one.")
    summaries = [summarize(path) for path in reviews]
    if as_json:
        print_json([summary.to_dict() for summary in summaries])
    elif as_markdown:
        print(markdown(summaries), end="")
    else:
        for summary in summaries:
            show(summary)
