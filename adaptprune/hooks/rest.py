"""What follows once a pruned prompt is read: keys that leave the early layers, outputs for a loss, the report."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.state import BELOW, Call, View, places
from adaptprune.report import PruneReport, SampleReport


def evict(call: Call) -> None:
    """Let every layer hold what the last stage kept: the keys of pruned tokens leave the layers before it."""
    state = call.state
    final = state.views[max(state.views)]
    for index, layer in enumerate(kv.layers_of(call.cache)):
        if kv.keyless(layer):
            continue
        width = kv.width(layer)
        keys, values = kv.filled(layer)
        held = state.columns(call.stage_at(index), call.total, call.batch, call.device)[:, -kv.held(layer) :]
        place = places(held, call.total).gather(1, final.index.clamp_min(0)).clamp_min(0).to(keys.device)
        place = place[:, -width + 1 :] if width is not None else place
        kv.replace(layer, _taken(keys, place), _taken(values, place))
    for stage in (BELOW, *state.stages):
        state.views[stage] = _shrunk(state.views.get(stage), final)


def _shrunk(view: View | None, final: View) -> View:
    """A view that holds what `final` does, some of what it held: its tokens keep their shift, its keys their bias."""
    if view is None or view.bias is None:
        return View(final.index, final.covered, None if view is None else view.shift)
    place = places(view.index, view.covered).gather(1, final.index.clamp_min(0)).clamp_min(0)
    return View(final.index, final.covered, view.shift, view.bias.gather(1, place))


def _taken(states: Tensor, place: Tensor) -> Tensor:
    """Places (B, S) of states (B, H, L, d)."""
    return states.gather(2, place[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


def own_output(call: Call, layer: int, hidden: Tensor, full: bool) -> Tensor:
    """The base's hidden states for the tokens of this forward alone, spread out to all of them if `full`.

    Spread out, `labels` and indices in `logits_to_keep` fit it: each dropped position repeats the state of the last
    one kept before it, which in the pruned sequence is the token that predicts the next. After choosing anew the
    states of the earlier conversation are cut off.
    """
    rows = call.rows_at(layer)
    assert rows is not None
    begin = call.anew or 0
    if full:
        slots = places(rows, call.length).cummax(dim=1).values.clamp_min(0)[:, begin:].to(hidden.device)
        return hidden.gather(1, slots[..., None].expand(-1, -1, hidden.shape[-1]))
    return hidden[:, -int((rows >= begin).sum(dim=1).max()) :]


def report_of(call: Call, before: PruneReport, backend: str, notes: list[str], num_layers: int) -> PruneReport:
    """The report of one prompt; `notes` are those of the model's family."""
    layers = kv.layers_of(call.cache)
    sizes = [sum(part.nbytes for part in kv.contents(layer) or ()) for layer in layers]
    lengths = [kv.held(layer) for layer in layers]
    whole = [_unpruned(call, index, held) if held else 0 for index, held in enumerate(lengths)]
    samples = [SampleReport() for _ in range(call.batch)]
    for row, (sample, layout, alive) in enumerate(zip(samples, call.layouts or (), call.alive, strict=False)):
        sample.num_visual, sample.num_kept = layout.positions.numel(), alive.numel()
        if not sample.num_visual:
            continue
        sample.num_asked = call.asked.get(row, sample.num_visual)
        sample.mean_kept = _mean_kept(call, row, sample.num_visual, num_layers)
        sample.kept = (layout.positions[alive] + call.past).tolist()
        count = int(layout.images.max()) + 1
        totals = (torch.bincount(part, minlength=count).tolist() for part in (layout.images, layout.images[alive]))
        sample.images = list(zip(*totals, strict=True))
        sample.cells = [tuple(cell) for cell in layout.coords[alive].tolist()]
        for members, scores in call.scores.get(row, ()):
            cells = layout.coords[members].tolist()
            sample.scores += [(*cell, score) for cell, score in zip(cells, scores.tolist(), strict=True)]
        for grid in torch.unique(layout.coords[:, 0]):
            member = layout.coords[:, 0] == grid
            rows, columns = (layout.coords[member, 1:].max(dim=0).values + 1).tolist()
            sample.grids.append((int(layout.images[member][0]), rows, columns))
    return PruneReport(
        method=before.method,
        stages=list(call.state.stages),
        samples=samples,
        kv_lengths=lengths,
        kv_bytes=sum(sizes),
        kv_bytes_unpruned=sum(size // max(1, n) * m for size, n, m in zip(sizes, lengths, whole, strict=True)),
        attention_backend=backend,
        selection_ms=1000 * call.selection_seconds,
        prompts=before.prompts + 1,
        tier=before.tier,
        notes=[*_on_keys(call), *_on_windows(call), *(notes if any(sample.num_visual for sample in samples) else ())],
    )


def _mean_kept(call: Call, row: int, size: int, num_layers: int) -> float:
    """How many visual tokens of a row its decoder's layers read, as a mean over them."""
    counts = {0: size, **{stage: counts[row] for stage, counts in call.stayed.items()}}
    starts = sorted(counts)
    ends = [*starts[1:], num_layers]
    return sum(counts[start] * (end - start) for start, end in zip(starts, ends, strict=True)) / num_layers


def _on_keys(call: Call) -> list[str]:
    """What is to be said of a decoder whose layers do not all hold keys."""
    layers = len(kv.layers_of(call.cache))
    holding = layers - len(call.keyless) - len(call.sources)
    return [f"only {holding} of {layers} layers hold keys"] if 0 < holding < layers else []


def _on_windows(call: Call) -> list[str]:
    """What is to be said of tokens that were ranked by a layer that did not see them."""
    said = []
    for stage, count in call.unseen.items():
        whole = (layer for layer in range(stage, len(kv.layers_of(call.cache))) if layer not in call.keyless)
        other = next((layer + 1 for layer in whole if call.window_at(layer) is None), None)
        use = "" if other is None or other in call.sources else f"; layer={other} is ranked by one that sees all"
        if count:
            said.append(f"{count} visual tokens lay outside the window of layer {stage - 1}, which ranks them{use}")
    return said


def _unpruned(call: Call, index: int, held: int) -> int:
    """How many keys a layer would hold without pruning."""
    width = kv.window(call.cache, index)
    return call.total if width is None else max(held, min(call.total, width - 1))
