"""What was pruned: plain numbers, for people (`str`) and for programs (`to_dict`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class SampleReport:
    """One row of the batch.

    Attributes
    ----------
    num_visual, num_asked, num_kept : int
        Visual tokens in the prompt, how many of them were to be kept, and how many were after the last pruning layer.
    mean_kept : float
        Visual tokens as a mean over the decoder's layers.
    kept : list of int
        Places of the kept visual tokens in the unpruned prompt (its padding counted), ascending.
    images : list of (int, int)
        Visual tokens and kept tokens of each image.
    grids : list of (int, int, int)
        Image, rows and columns of each grid (image, tile or frame).
    cells : list of (int, int, int)
        Grid, row and column of each kept token.
    scores : list of (int, int, int, float)
        With ``explain=True``: grid, row and column of each token, and how the rule ranked it before any left (nan: a
        rule that has no rank).
    """

    num_visual: int = 0
    num_asked: int = 0
    num_kept: int = 0
    mean_kept: float = 0.0
    kept: list[int] = field(default_factory=list)
    images: list[tuple[int, int]] = field(default_factory=list)
    grids: list[tuple[int, int, int]] = field(default_factory=list)
    cells: list[tuple[int, int, int]] = field(default_factory=list)
    scores: list[tuple[int, int, int, float]] = field(default_factory=list)


@dataclass
class PruneReport:
    """The latest prompt that went through the pruned model.

    Attributes
    ----------
    method : str
        The pruner's spec string.
    stages : list of int
        The decoder layers before which tokens leave.
    samples : list of SampleReport
        One per row of the batch (per beam with beam search).
    kv_lengths : list of int
        Per decoder layer, keys in the cache once the prompt was read (padding counted). Empty without a cache.
    kv_bytes, kv_bytes_unpruned : int
        Bytes of keys and values at that time; and what they would be if every layer held the whole prompt.
    attention_backend : str
        The decoder's attention implementation.
    selection_ms : float
        Host time of capturing the cues and selecting, all samples and layers, in milliseconds.
    prompts : int
        How many prompts were read since the hooks were put on.
    tier : {"tested", "checked", "unchecked"}
        How far it is proven that this model is pruned rightly. "tested": models of this type are, with their real
        processor, whenever this package changes. "checked": this one has passed a check, here. "unchecked": it was to
        be pruned without.
    notes : list of str
        What is special about the model: layers without keys, tokens without a grid.
    """

    method: str = ""
    stages: list[int] = field(default_factory=list)
    samples: list[SampleReport] = field(default_factory=list)
    kv_lengths: list[int] = field(default_factory=list)
    kv_bytes: int = 0
    kv_bytes_unpruned: int = 0
    attention_backend: str = ""
    selection_ms: float = 0.0
    prompts: int = 0
    tier: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def num_visual(self) -> int:
        """Visual tokens of all samples before pruning."""
        return sum(sample.num_visual for sample in self.samples)

    @property
    def num_asked(self) -> int:
        """How many visual tokens of all samples were to be kept."""
        return sum(sample.num_asked for sample in self.samples)

    @property
    def num_kept(self) -> int:
        """Visual tokens of all samples after pruning."""
        return sum(sample.num_kept for sample in self.samples)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types, for JSON."""
        return {
            **asdict(self),
            "num_visual": self.num_visual,
            "num_asked": self.num_asked,
            "num_kept": self.num_kept,
        }

    def __str__(self) -> str:
        if not self.num_visual:
            return "no visual tokens seen yet" if not self.prompts else "the prompt had no image: nothing to prune"
        text = f"kept {self.num_kept} of {self.num_visual} visual tokens"
        if self.num_kept != self.num_asked:
            mean = sum(sample.mean_kept for sample in self.samples)
            text += f" (asked: {self.num_asked}; mean over layers: {mean:.0f})"
        if self.kv_bytes:
            text += f", KV cache {self.kv_bytes / 2**20:.2f} of {self.kv_bytes_unpruned / 2**20:.2f} MiB"
        text += f", selection {self.selection_ms:.1f} ms"
        said = ([self.tier] if self.tier in ("checked", "unchecked") else []) + self.notes
        return f"{text} ({'; '.join(said)})" if said else text
