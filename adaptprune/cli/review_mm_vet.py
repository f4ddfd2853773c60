"""`adaptprune review mm-vet`"""

from __future__ import annotations

from pathlib import Path

import typer

from adaptprune.cli.review_options import (
    CONCURRENCY,
    DEADLINE,
    JSON,
    JUDGE_MODEL,
    JUDGE_URL,
    KEY_VARIABLE,
    LIMIT,
    MAX_TOKENS,
    OUTPUT,
    REQUEST,
    RETRIES,
    TEMPERATURE,
    TIMEOUT,
    bar,
    finish,
    make_judge,
    required,
)


def command(
    context_: typer.Context,
    questions: Path = typer.Option(None, help="mm-vet.json as published."),
    results: Path = typer.Option(None, help='Answers, json: {"v1_0": "…", …}.'),
    prompt: Path = typer.Option(None, help="Few-shot prompt, a text file. Default: the package's own words."),
    runs: int = typer.Option(1, help="How often every answer is graded (the paper: 5)."),
    output: Path = OUTPUT,
    judge_model: str = JUDGE_MODEL,
    judge_url: str = JUDGE_URL,
    key_variable: str = KEY_VARIABLE,
    temperature: float = TEMPERATURE,
    max_tokens: int = MAX_TOKENS,
    request: str = REQUEST,
    timeout: float = TIMEOUT,
    deadline: float = DEADLINE,
    retries: int = RETRIES,
    concurrency: int = CONCURRENCY,
    limit: int = LIMIT,
    as_json: bool = JSON,
) -> None:
    """Have a language model grade MM-Vet answers from 0.0 to 1.0."""
    from adaptprune.review import review_mm_vet

    required(questions=questions, results=results, output=output, judge_model=judge_model)
    judge = make_judge(context_.params)
    with bar("grades", not as_json) as progress:
        outcome = review_mm_vet(
            judge,
            questions=questions,
            results=results,
            output=output,
            prompt=prompt,
            runs=runs,
            limit=limit,
            progress=progress,
        )
    finish(outcome, as_json)
