"""What is compared: the unpruned model, and methods at keep ratios, each a column of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaptprune.errors import AdaptPruneError
from adaptprune.methods import make_pruner
from adaptprune.pruner import Pruner

UNPRUNED = "unpruned"
DOWNSAMPLE = "downsample"
#: What is compared if nothing is asked for: there are too many rules to try all of them unasked.
USUAL = ("adaptprune", "fastv", "random", "grid", "pool", DOWNSAMPLE)


@dataclass(frozen=True)
class Column:
    """One method at one ratio; `method` is a spec, "unpruned", or "downsample" (a smaller picture for the model)."""

    method: str
    keep_ratio: float = 1.0

    @property
    def name(self) -> str:
        return self.method if self.method == UNPRUNED else f"{self.method}@{self.keep_ratio:g}"

    @property
    def file(self) -> str:
        """The name, safe as a file's."""
        return self.name.replace("/", "_").replace(":", ",")

    def pruner(self) -> Pruner | None:
        if self.method in (UNPRUNED, DOWNSAMPLE):
            return None
        return make_pruner(self.method, keep_ratio=self.keep_ratio)


def columns(methods: Sequence[str], keep_ratios: Sequence[float]) -> list[Column]:
    """The unpruned column, then every method at every ratio; a mistake in one is found before anything runs."""
    made = [Column(UNPRUNED), *(Column(m, r) for m in methods if m != UNPRUNED for r in keep_ratios)]
    for column in made:
        column.pruner()
    if len({column.name for column in made}) < len(made):
        raise AdaptPruneError("the same method and keep_ratio is asked for twice: leave one out.")
    return made
