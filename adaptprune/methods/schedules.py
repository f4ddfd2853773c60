"""Rules that act before several layers: where these are in a decoder of any depth, and how many tokens each keeps."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from adaptprune.errors import AdaptPruneError
from adaptprune.pruner import Pruner

#: Layers of the decoder that published stages are told for.
PUBLISHED_DEPTH = 32


def scaled(layers: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Stages of a decoder of 32 layers, at the same depth of another: rounded half up, each later than the one before.

    Raises
    ------
    AdaptPruneError
        The decoder has too few layers.
    """
    stages: list[int] = []
    for layer in layers:
        earliest = stages[-1] + 1 if stages else 1
        stages.append(max(earliest, math.floor(layer * num_layers / PUBLISHED_DEPTH + 0.5)))
    return within(tuple(stages), num_layers, f" (layers={layers} of {PUBLISHED_DEPTH})")


def within(stages: tuple[int, ...], num_layers: int, told: str = "") -> tuple[int, ...]:
    """The stages, if they are different layers of the decoder; AdaptPruneError otherwise."""
    if stages[-1] > num_layers - 1 or len(set(stages)) < len(stages):
        raise AdaptPruneError(
            f"tokens would leave before layers {', '.join(map(str, stages))}{told}, and this decoder's last one is "
            f"{num_layers - 1}: use a rule that acts once, such as fastv"
            + (", or earlier `layers`." if num_layers > len(stages) else ".")
        )
    return stages


def check_layers(layers: object, count: int | None = None) -> None:
    """Raise unless an option tells layers of a decoder of 32: whole numbers from 1 to 31, each above the one before."""
    numbers = layers if isinstance(layers, tuple) else ()
    whole = all(isinstance(each, int) and not isinstance(each, bool) for each in numbers)
    rising = whole and all(a < b for a, b in zip((0, *numbers), (*numbers, PUBLISHED_DEPTH), strict=True))
    if not numbers or not rising or (count is not None and len(numbers) != count):
        raise AdaptPruneError(
            f"layers={layers!r} is not allowed: it is a tuple of {count or 'one or more'} layers of a decoder of "
            f"{PUBLISHED_DEPTH}, from 1 to {PUBLISHED_DEPTH - 1}, each above the one before."
        )


def common_ratio(mean: float, stages: tuple[int, ...], num_layers: int) -> float:
    """The q in 0..1 with which keeping q, q^2, q^3... of the tokens from each stage on keeps `mean` over all layers.

    Found by 60 halvings in float64. `mean` below what stays with q = 0, the layers before the first stage, gives 0.
    """
    ends = (*stages[1:], num_layers)
    spans = [end - start for start, end in zip(stages, ends, strict=True)]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        kept = stages[0] + sum(span * middle ** (power + 1) for power, span in enumerate(spans))
        if kept / num_layers <= mean:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Staged(Pruner):
    """A rule that acts before several layers, told as those of a decoder of 32.

    Parameters
    ----------
    layers : tuple of int
        The layers before which tokens leave, of a decoder of 32; of another depth those at the same part of it, each
        later than the one before.
    """

    layers: tuple[int, ...] = (16,)
    layer: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        check_layers(self.layers)
        object.__setattr__(self, "layer", self.layers[0])
        super().__post_init__()

    def stages(self, num_layers: int) -> tuple[int, ...]:
        return scaled(self.layers, num_layers)


@dataclass(frozen=True)
class Dwindling(Staged):
    """Each stage keeps the same part of what the one before it kept.

    Which part, follows from `keep_ratio` (or `num_keep`): that is the mean over all layers of the decoder.
    """

    def stages(self, num_layers: int) -> tuple[int, ...]:
        stages = super().stages(num_layers)
        if self.num_keep is None and self.keep_ratio < stages[0] / num_layers:
            least = math.ceil(stages[0] / num_layers * 1e4) / 1e4
            raise self._too_few(f"keep_ratio={self.keep_ratio}", f"keep_ratio={least:g}", stages[0], num_layers)
        return stages

    def counts(self, size: int, num_layers: int) -> dict[int, int]:
        stages, target = self.stages(num_layers), self.target(size)
        if self.num_keep is not None and target * num_layers < stages[0] * size:
            least = f"num_keep={math.ceil(stages[0] * size / num_layers)}"
            raise self._too_few(f"num_keep={self.num_keep} of {size}", least, stages[0], num_layers)
        part = common_ratio(target / size, stages, num_layers)
        return {stage: max(1, math.floor(size * part**power + 1e-9)) for power, stage in enumerate(stages, start=1)}

    def _too_few(self, asked: str, least: str, first: int, num_layers: int) -> AdaptPruneError:
        return AdaptPruneError(
            f"{asked} is too few for {self.name!r}: it is the mean over all {num_layers} layers, and up to layer "
            f"{first} all tokens are there. Use {least} or more, or earlier `layers`."
        )
