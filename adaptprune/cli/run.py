"""`adaptprune run`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from adaptprune.cli.app import print_json, stdout
from adaptprune.cli.loading import loading_options, say_notice
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
    overlay: Path = typer.Option(None, help="Write the picture with dropped patches dimmed (PNG)."),
) -> None:
    """Answer a question about images with a pruned model."""
    pruner = _pruner(method, keep_ratio=keep_ratio, num_keep=num_keep, layer=layer)
    _check_overlay(overlay, image, pruner)
    from adaptprune.engines.transformers import TransformersEngine
    from adaptprune.images import open_image
    from adaptprune.models import load

    images = [open_image(source) for source in image]
    progress_bars(not as_json)
    engine = TransformersEngine(*load(**loading))
    say_notice(engine.model)
    answer = engine.answer(
        images,
        prompt,
        pruner,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        on_text=(lambda text: None) if as_json else (lambda text: print(text, end="", flush=True)),
    )
    if overlay is not None:
        from adaptprune.viz import overlay as draw
        from adaptprune.viz import pictures_seen

        assert answer.report is not None
        seen = pictures_seen(engine.processor, answer.inputs, answer.report.samples[0])
        draw(images, answer.report.samples[0], seen).save(overlay)
    if as_json:
        print_json(_record(answer, engine, prompt, image))
        return
    print()
    times = answer.timings
    more = times.new_tokens - 1
    report = f"{pruner.name} before layer {pruner.layer}: {answer.report}" if pruner else "unpruned"
    stdout.print(
        f"[dim]{report}; first token {times.first_token_ms:.0f} ms, then {more} token{'' if more == 1 else 's'} at "
        f"{times.decode_tokens_per_second:.0f} per second[/]"
    )


command.__name__ = "run"


def _pruner(method: str, **options: Any) -> Any:
    if method == "none":
        if any(value is not None for value in options.values()):
            raise AdaptPruneError("--method none runs unpruned: leave out --keep-ratio, --num-keep and --layer.")
        return None
    from adaptprune.methods import make_pruner

    return make_pruner(method, **options)


def _check_overlay(overlay: Path | None, image: list[str], pruner: Any) -> None:
    """Before anything slow is done."""
    if overlay is None:
        return
    if not image or pruner is None:
        raise AdaptPruneError(
            "--overlay shows what was dropped of an image: give --image and a method other than none."
        )
    if overlay.suffix.lower() != ".png":
        raise AdaptPruneError(f"--overlay {str(overlay)!r} is not allowed: the name has to end in .png.")
    if overlay.is_dir():
        raise AdaptPruneError(f"--overlay {str(overlay)!r} is a folder: name a file in it.")
    if not overlay.absolute().parent.is_dir():
        raise AdaptPruneError(f"there is no folder {str(overlay.absolute().parent)!r} for --overlay: create it first.")


def _record(answer: Any, engine: Any, prompt: str, image: list[str]) -> dict[str, Any]:
    from adaptprune.doctor import versions

    return {
        "answer": answer.text,
        "prompt": prompt,
        "images": image,
        "model": engine.model.config.name_or_path,
        "prompt_tokens": answer.prompt_tokens,
        "report": answer.report.to_dict() if answer.report else None,
        "timings": answer.timings.to_dict(),
        "versions": versions(),
    }
