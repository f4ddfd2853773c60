"""`adaptprune run`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from adaptprune.cli.app import print_json, stdout
from adaptprune.cli.loading import loading_options, say_notice
from adaptprune.cli.outputs import check_output, save_picture
from adaptprune.cli.quiet import progress_bars
from adaptprune.errors import AdaptPruneError


@loading_options
def command(
    prompt: str = typer.Option(..., "--prompt", "-p", help="The question."),
    image: list[str] = typer.Option([], "--image", "-i", help="Path or http(s) address; several are allowed."),
    loading: Any = None,
    method: str = typer.Option("adaptprune", help="Method or spec (name:option=value,...); none runs unpruned."),
    keep_ratio: float = typer.Option(None, help="Fraction of visual tokens kept, above 0 and at most 1."),
    num_keep: int = typer.Option(None, help="Visual tokens kept per image, in place of --keep-ratio."),
    layer: int = typer.Option(None, help="Prune before this decoder layer."),
    max_new_tokens: int = typer.Option(128, help="Length limit of the answer."),
    temperature: float = typer.Option(0.0, help="0 is greedy."),
    seed: int = typer.Option(None, help="Seed for sampling."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of streaming."),
    overlay: Path = typer.Option(None, help="Write the picture with what was kept outlined and the rest faded (PNG)."),
) -> None:
    """Answer a question about images with a pruned model."""
    from adaptprune.engines.protocol import Pruning

    pruning = Pruning(method, keep_ratio, num_keep, layer)
    pruner = pruning.pruner()
    _check_overlay(overlay, image, pruner)
    from adaptprune.engines.sampling import Sampling
    from adaptprune.images import open_image

    sampling = Sampling(max_new_tokens, temperature, seed=seed)
    sampling.check()
    images = [open_image(source) for source in image]
    from adaptprune.engines.local import LocalEngine
    from adaptprune.models import load
    from adaptprune.prompts import question

    progress_bars(not as_json)
    engine = LocalEngine(*load(**loading))
    say_notice(engine.model)
    show = (lambda text: None) if as_json else (lambda text: print(text, end="", flush=True))
    answer = engine.ask(question(prompt, images), sampling, pruning, on_text=show)
    if overlay is not None:
        assert answer.overlay is not None
        save_picture(answer.overlay, overlay)
    if as_json:
        print_json(_record(answer, engine, prompt, image))
        return
    print()
    assert answer.new_tokens is not None
    more = answer.new_tokens - 1
    report = f"{pruner.name}{_where(answer.report)}: {answer.report}" if pruner else "unpruned"
    stdout.print(
        f"[dim]{report}; first token {answer.first_token_ms:.0f} ms, then {more} token{'' if more == 1 else 's'} at "
        f"{answer.decode_tokens_per_second:.0f} per second[/]"
    )


command.__name__ = "run"


def _where(report: Any) -> str:
    """Before which layers tokens leave."""
    stages = report.stages if report is not None else ()
    return f" before layer{'' if len(stages) == 1 else 's'} {', '.join(map(str, stages))}" if stages else ""


def _check_overlay(overlay: Path | None, image: list[str], pruner: Any) -> None:
    """Before anything slow is done."""
    if overlay is None:
        return
    if not image or pruner is None:
        raise AdaptPruneError(
            "--overlay shows what was dropped of an image: give --image and a method other than none."
        )
    check_output(overlay, "--overlay", ".png")


def _record(answer: Any, engine: Any, prompt: str, image: list[str]) -> dict[str, Any]:
    from adaptprune.installed import versions

    return {
        "answer": answer.text,
        "prompt": prompt,
        "images": image,
        "model": engine.model.config.name_or_path,
        "prompt_tokens": answer.prompt_tokens,
        "report": answer.report.to_dict() if answer.report else None,
        "timings": {
            "first_token_ms": answer.first_token_ms,
            "total_ms": answer.total_ms,
            "new_tokens": answer.new_tokens,
            "decode_tokens_per_second": answer.decode_tokens_per_second,
        },
        "versions": versions(),
    }
