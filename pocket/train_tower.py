"""Stage 1: teach a vision tower to see, with dense labels on everything that becomes a visual token.

Contract: writes ``tower.pt`` (checkpoint, resumable) into the run folder. The patch heads read what the tower passes on
to the language model; a class token, if there is one, is taught what the whole picture holds, so that its attention
means something. All heads are thrown away afterwards.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from adaptprune.tabletop.labels import IGNORE, PatchLabels, patch_labels
from adaptprune.tabletop.render import render
from adaptprune.tabletop.scenes import Scene, scene
from adaptprune.tabletop.vocabulary import CHARACTERS, COLOUR_NAMES, GRID, PATCH_SIZE, SHAPES
from pocket.architectures import Architecture
from pocket.muon import Muon
from pocket.pixels import to_tensor
from pocket.precision import halved
from pocket.runs import Log, learning_rate, load, moved, save, set_rate
from pocket.shares import CUT, MOST, share_error

WINDOW = 12  # patches along one side of a training crop
KINDS = len(SHAPES) + 2  # shapes, background, sign


@dataclass(frozen=True)
class TowerPlan:
    """Length and size of the stage."""

    steps: int = 3000
    crops_per_step: int = 32
    crops: int = 4  # taken from one rendered picture, the first of them around the sign
    first_scene: int = 0  # train index of the first picture
    detail: bool = False  # teach characters, places and sizes harder
    peak: float = 1.0  # factor on the learning rates after warm-up
    hold: float = 0.5  # share of the steps at the peak
    stop: int | None = None  # end here, before the schedule does
    place: bool = False  # teach every patch where it is
    ramps: bool = False  # before the first step, write that into the positions
    sums: bool = False  # teach shares of things that sum to one
    full_share: float = 0.12  # last part of the steps, on whole pictures
    full_per_step: int = 8
    matrix_rate: float = 0.02
    other_rate: float = 1.5e-3
    looking_rate: float = 3e-4  # queries, keys and positions
    first_rate: float = 5e-5  # 588 correlated pixels add up: a step of 1e-3 on each would move a token by its own size
    half: bool = False  # matrix products in bfloat16
    save_every: int = 200
    validate_every: int = 400


class TowerWithHeads(nn.Module):
    """The tower and the linear heads that teach it."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.tower = architecture.make_tower()
        width = architecture.width
        self.sizes = {
            "shape": KINDS,
            "colour": len(COLOUR_NAMES),
            "character": len(CHARACTERS),
            "position": 4,
            "offset": 2,
        }
        self.norm = nn.LayerNorm(width)
        self.patch_head = nn.Linear(width, sum(self.sizes.values()))
        pairs = len(SHAPES) * len(COLOUR_NAMES)
        self.class_head = nn.Linear(width, pairs + len(SHAPES) + len(COLOUR_NAMES) + 1)
        architecture.start_tower(self.tower)
        # last, so that they change nothing for plans that do not use them
        self.radius_head = nn.Linear(width, 1)
        self.place_head = nn.Linear(width, 2)
        self.share_head = nn.Linear(width, 1)

    def forward(self, pixels: Tensor, rows: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Patch predictions (B, N, ...) by name and class-token predictions (B, ...).

        ``pixels`` is (B, 3, H, W) and ``rows`` (B, N) the position rows of its patches on the full grid.
        """
        return self.read(*self.features(pixels, rows))

    def features(self, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features of all visual tokens (B, N, D) and the class state (B, D), None where the tower has none."""
        return self.architecture.features(self.tower, pixels, rows)

    def read(self, features: Tensor, whole: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Predictions from features (B, N, D) and the class state (B, D)."""
        outputs = self.patch_head(self.norm(features)).split(list(self.sizes.values()), dim=-1)
        found = dict(zip(self.sizes, outputs, strict=True))
        found["radius"] = self.radius_head(self.norm(features))
        found["place"] = self.place_head(self.norm(features))
        found["share"] = self.share_head(self.norm(features))[..., 0]
        return found, None if whole is None else self.class_head(whole)


def global_targets(picture: Scene, window: tuple[int, int, int]) -> Tensor:
    """What the class token must say about a window (top, left, side in patches): pairs present, then counts / 4."""
    top, left, side = window
    pairs = torch.zeros(len(COLOUR_NAMES), len(SHAPES))
    for thing in picture.things:
        row, column = thing.y / PATCH_SIZE - top, thing.x / PATCH_SIZE - left
        if 0 <= row < side and 0 <= column < side:
            pairs[COLOUR_NAMES.index(thing.colour), SHAPES.index(thing.shape)] += 1
    counts = torch.cat([pairs.sum(0), pairs.sum(1), pairs.sum().view(1)]) / 4
    return torch.cat([pairs.flatten().clamp(max=1), counts])


def losses(
    patches: dict[str, Tensor], whole: Tensor | None, labels: dict[str, Tensor], targets: Tensor
) -> dict[str, Tensor]:
    """All training losses by name, each a mean over the entries it applies to."""
    weight = torch.ones(KINDS, device=targets.device)
    weight[len(SHAPES)] = 0.15  # background is most of every picture
    found = {"shape": F.cross_entropy(patches["shape"].flatten(0, 1), labels["shape"].flatten(), weight)}
    for name in ("colour", "character", "position"):
        total = F.cross_entropy(patches[name].flatten(0, 1), labels[name].flatten(), reduction="sum")
        found[name] = total / (labels[name] != IGNORE).sum().clamp(min=1)
    on_thing = labels["colour"] != IGNORE
    found["offset"] = F.smooth_l1_loss(patches["offset"][on_thing], labels["offset"][on_thing])
    found["radius"] = F.smooth_l1_loss(patches["radius"][on_thing][:, 0], labels["radius"][on_thing])
    found["place"] = F.smooth_l1_loss(patches["place"], labels["place"], beta=0.1)
    found["share"] = share_error(patches["share"], labels["thing"])
    if whole is None:
        return found
    pairs = len(SHAPES) * len(COLOUR_NAMES)
    found["pairs"] = F.binary_cross_entropy_with_logits(whole[:, :pairs], targets[:, :pairs]) * 4
    found["counts"] = F.smooth_l1_loss(whole[:, pairs:], targets[:, pairs:])
    return found


LOSS_WEIGHTS = {
    "shape": 1.0,
    "colour": 0.5,
    "character": 0.7,
    "position": 0.2,
    "offset": 0.5,
    "pairs": 0.3,
    "counts": 0.3,
    "radius": 0.0,
    "place": 0.0,
    "share": 0.0,
}
DETAIL_WEIGHTS = {**LOSS_WEIGHTS, "character": 1.4, "position": 0.6, "offset": 2.0, "radius": 1.0}
PLACE_WEIGHT = 2.0
SHARE_WEIGHT = 1.5


def total_loss(found: dict[str, Tensor], detail: bool, place: bool, sums: bool) -> Tensor:
    """Weighted sum of the losses."""
    weights = {**(DETAIL_WEIGHTS if detail else LOSS_WEIGHTS), "place": PLACE_WEIGHT * place}
    weights["share"] = SHARE_WEIGHT * sums
    return torch.stack([weights[name] * value for name, value in found.items() if weights[name]]).sum()


def make_batch(step: int, plan: TowerPlan, full: bool) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """Pixels, position rows, labels and class targets of one step; a function of the step alone."""
    draw = np.random.RandomState(step)
    rendered = plan.crops_per_step // plan.crops
    count = plan.full_per_step if full else rendered
    side = GRID if full else WINDOW
    pictures, rows, labels, targets = [], [], [], []
    for number in range(count):
        current = scene("train", plan.first_scene + step * rendered + number)
        pixels, truth = np.asarray(render(current)), patch_labels(current)
        for crop in range(1 if full else plan.crops):
            top, left = (0, 0) if full else _corner(current, crop, draw)
            window = np.arange(GRID * GRID).reshape(GRID, GRID)[top : top + side, left : left + side].ravel()
            y, x, span = top * PATCH_SIZE, left * PATCH_SIZE, side * PATCH_SIZE
            pictures.append(pixels[y : y + span, x : x + span])
            rows.append(torch.from_numpy(window))
            labels.append(truth)
            targets.append(global_targets(current, (top, left, side)))
    positions = torch.stack(rows)
    return to_tensor(pictures), positions, collect(labels, positions), torch.stack(targets)


def _corner(current: Scene, crop: int, draw: np.random.RandomState) -> tuple[int, int]:
    """Corner of a crop. The first one holds the sign, whose few patches would otherwise be seen too rarely."""
    limit = GRID - WINDOW
    if crop == 0 and current.sign is not None:
        row, column = int(current.sign.y / PATCH_SIZE), int(current.sign.x / PATCH_SIZE)
        row, column = row - draw.randint(2, 10), column - draw.randint(4, 8)
        return min(max(row, 0), limit), min(max(column, 0), limit)
    return draw.randint(0, limit + 1), draw.randint(0, limit + 1)


def collect(truths: list[PatchLabels], rows: Tensor) -> dict[str, Tensor]:
    """Labels of the patches in ``rows`` (B, N) as tensors by name."""
    batch = {}
    for name in ("shape", "colour", "character", "position", "offset", "radius"):
        batch[name] = torch.stack([torch.from_numpy(getattr(t, name))[r] for t, r in zip(truths, rows, strict=True)])
    batch["thing"] = torch.stack([_whole_things(t.thing, r.numpy()) for t, r in zip(truths, rows, strict=True)])
    middle = (GRID - 1) / 2
    batch["place"] = torch.stack([rows % GRID - middle, rows // GRID - middle], dim=-1) / middle  # x, y from -1 to 1
    return batch


def _whole_things(thing: np.ndarray, window: np.ndarray) -> Tensor:
    """Things of the patches of a window, CUT where a part of the thing is outside of it."""
    inside = np.bincount(thing[window] + 1, minlength=MOST + 1)
    partly = inside < np.bincount(thing + 1, minlength=MOST + 1)
    partly[0] = False
    return torch.from_numpy(np.where(partly[thing[window] + 1], CUT, thing[window]))


def share_right(predicted: Tensor, labels: dict[str, Tensor], name: str) -> float:
    """Accuracy per patch, on things for the shape, on characters for the character; NaN where there are none."""
    valid = labels["colour" if name == "shape" else name] != IGNORE
    return (predicted.argmax(-1) == labels[name])[valid].float().mean().item()


@torch.no_grad()
def validate(model: TowerWithHeads, pictures: int = 48) -> dict[str, float]:
    """Accuracy per labelled patch on whole validation pictures; shape on things only, background apart.

    Of offset, radius and place the mean error, in patches; of shares that of their sum over a thing.
    """
    device = next(model.parameters()).device
    names = ("shape", "background", "colour", "character", "position", "offset", "radius", "place", "sum", "pairs")
    hits: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, pictures, 8):
        scenes = [scene("validation", index) for index in range(start, start + 8)]
        rows = torch.arange(GRID * GRID).expand(8, -1)
        labels = moved(collect([patch_labels(s) for s in scenes], rows), device)
        pixels = to_tensor([np.asarray(render(s)) for s in scenes])
        patches, whole = model(pixels.to(device), rows.to(device))
        kind = patches["shape"].argmax(-1) == labels["shape"]
        on_thing = labels["colour"] != IGNORE
        hits["shape"].append(kind[on_thing])
        hits["background"].append(kind[labels["shape"] == len(SHAPES)])
        for name in ("colour", "character", "position"):
            hits[name].append((patches[name].argmax(-1) == labels[name])[labels[name] != IGNORE])
        hits["offset"].append((patches["offset"] - labels["offset"])[on_thing].abs().flatten())
        hits["place"].append((patches["place"] - labels["place"]).abs().flatten() * (GRID - 1) / 2)
        hits["radius"].append((patches["radius"][..., 0] - labels["radius"])[on_thing].abs())
        sums = torch.zeros(len(scenes), MOST + 1, device=device).scatter_add_(
            1, labels["thing"] + 1, patches["share"].exp()
        )[:, 1:]
        hits["sum"].append((sums - 1)[sums > 0].abs())
        if whole is None:
            continue
        targets = torch.stack([global_targets(s, (0, 0, GRID)) for s in scenes]).to(device)
        pairs = len(SHAPES) * len(COLOUR_NAMES)
        hits["pairs"].append(((whole[:, :pairs] > 0) == (targets[:, :pairs] > 0))[targets[:, :pairs] > 0])
    return {name: torch.cat(values).float().mean().item() for name, values in hits.items() if values}


def optimisers(model: TowerWithHeads, plan: TowerPlan) -> list[torch.optim.Optimizer]:
    """Muon for values, outputs and MLPs, slow AdamW for queries and keys, AdamW for everything else.

    Muon on queries and keys would wipe out the local start within fifty steps, and little is learnt without it.
    """
    rated: dict[str | None, list[nn.Parameter]] = {rate: [] for rate in ("first", "looking", "matrix", "other", None)}
    for name, parameter in model.tower.named_parameters():
        rated[model.architecture.rate_of(name, parameter)].append(parameter)
    heads = [parameter for name, parameter in model.named_parameters() if not name.startswith("tower.")]
    groups = [
        {"params": rated["first"], "lr": plan.first_rate},
        {"params": rated["looking"], "lr": plan.looking_rate},
        {"params": rated["other"] + heads, "lr": plan.other_rate},
    ]
    return [
        Muon(rated["matrix"], lr=plan.matrix_rate, weight_decay=0.02, half=plan.half),
        torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_tower(
    run: Path, plan: TowerPlan, start: TowerWithHeads, stage: str = "tower", device: str = "cpu"
) -> TowerWithHeads:
    """Run or resume the stage on a tower, and return it with its heads."""
    model, log, path = start.to(device), Log(run, stage), run / f"{stage}.pt"
    tools = optimisers(model, plan)
    state: dict[str, Any] = load(path) or {"step": 0}
    last = plan.steps if plan.stop is None else plan.stop
    if state["step"]:
        model.load_state_dict(state["model"], strict=state["step"] < last)
    if state["step"] >= last:
        return model
    if plan.ramps and not state["step"]:
        model.architecture.add_ramps(model.tower)
    for tool, saved in zip(tools, state.get("optimisers", []), strict=False):
        tool.load_state_dict(saved)
    hits: list[list[float]] = []
    first_full = int(plan.steps * (1 - plan.full_share))
    for step in tqdm(range(state["step"], last), stage, mininterval=5):
        set_rate(tools, plan.peak * learning_rate(step, plan.steps, hold=plan.hold))
        pixels, rows, labels, targets = moved(make_batch(step, plan, step >= first_full), device)
        with halved(device, plan.half):
            outputs = moved(model(pixels, rows), torch.float32)
        found = losses(*outputs, labels, targets)
        for tool in tools:
            tool.zero_grad()
        total_loss(found, plan.detail, plan.place, plan.sums).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for tool in tools:
            tool.step()
        done = step + 1
        with torch.no_grad():
            hits.append([share_right(outputs[0][name], labels, name) for name in ("shape", "character", "position")])
        if done % 50 == 0:
            shares = np.nanmean(np.array(hits), axis=0)
            hits.clear()
            parts = {name: value.item() for name, value in found.items()}
            rights = dict(zip(("shape_right", "character_right", "position_right"), map(float, shares), strict=True))
            log.write(step=done, **rights, **parts)
        if done % plan.validate_every == 0 or done == last:
            log.write(step=done, validation=validate(model))
        if done % plan.save_every == 0 or done == last:
            saved = [tool.state_dict() for tool in tools]
            save(path, {"step": done, "model": model.state_dict(), "optimisers": saved})
    return model
