"""`adaptprune review`: LLaVA's pairwise review, with the commands `mm-vet` and `summarize` under it"""

from __future__ import annotations

from pathlib import Path

import typer

from adaptprune.cli import review_mm_vet, review_summarize
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
    subcommand,
)

group = typer.Typer(no_args_is_help=True)


@group.callback(invoke_without_command=True)
def command(
    context_: typer.Context,
    questions: Path = typer.Option(None, help="Questions, jsonl: question_id, image, text, category."),
    context: Path = typer.Option(None, help="What is in the images, jsonl: captions and boxes, or a caption."),
    answers: tuple[Path, Path] = typer.Option(None, help="The reference's answers and ours, jsonl."),
    rule: Path = typer.Option(None, help="LLaVA's rule.json, or one like it. Default: the package's own words."),
    system: str = typer.Option(None, help="System message. Default: the package's own."),
    both_orders: bool = typer.Option(False, "--both-orders", help="Ask twice, with either answer first."),
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
    """Have a language model compare two sets of answers (LLaVA's GPT-assisted review, LLaVA-Bench-in-the-Wild)."""
    if subcommand(context_):
        return
    from adaptprune.review import review_pairs
    from adaptprune.review.pairwise import SYSTEM

    required(questions=questions, answers=answers, output=output, judge_model=judge_model)
    judge = make_judge(context_.params)
    with bar("reviews", not as_json) as progress:
        outcome = review_pairs(
            judge,
            questions=questions,
            answers=answers,
            output=output,
            context=context,
            rule=rule,
            system=SYSTEM if system is None else system,
            both_orders=both_orders,
            limit=limit,
            progress=progress,
        )
    finish(outcome, as_json)


group.command("mm-vet")(review_mm_vet.command)
group.command("summarize")(review_summarize.command)
