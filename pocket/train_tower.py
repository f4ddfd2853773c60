"""Stage 1: teach a CLIP-format vision tower to see, with dense labels on every patch.

Contract: writes ``tower.pt`` (checkpoint, resumable) into the run folder. The patch heads read the last but one layer,
which is what LLaVA feeds to the language model; the class token reads the last layer and is taught what the whole
picture holds, so that its attention means something. All heads are thrown away afterwards.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPVisionModel

from adaptprune.tabletop.labels import IGNORE, PatchLabels, patch_labels
from adaptprune.tabletop.render import render
from adaptprune.tabletop.scenes import Scene, scene
from adaptprune.tabletop.vocabulary import CHARACTERS, COLOUR_NAMES, GRID, PATCH_SIZE, SHAPES
from pocket.looking import share_error
from pocket.mentions import MOST
from pocket.model import vision_config
from pocket.muon import Muon
from pocket.runs import Log, learning_rate, load, save, set_rate
from pocket.start import add_ramps, look_at_neighbours, to_tensor, whiten

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
    sums: bool = False  # teach shares of things that sum to one; for whole pictures only
    full_share: float = 0.12  # last part of the steps, on whole pictures
    full_per_step: int = 8
    matrix_rate: float = 0.02
    other_rate: float = 1.5e-3
    looking_rate: float = 3e-4  # queries, keys and positions
    first_rate: float = 5e-5  # 588 correlated pixels add up: a step of 1e-3 on each would move a token by its own size
    save_every: int = 200
    validate_every: int = 400


class TowerWithHeads(nn.Module):
    """The tower and the linear heads that teach it."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(vision_config())
        width = self.tower.config.hidden_size
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
        look_at_neighbours(self.tower)
        whiten(self.tower)
        # last, so that they change nothing for plans that do not use them
        self.radius_head = nn.Linear(width, 1)
        self.place_head = nn.Linear(width, 2)
        self.share_head = nn.Linear(width, 1)

    def forward(self, pixels: Tensor, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Patch predictions (B, N, ...) by name and class-token predictions (B, ...).

        ``pixels`` is (B, 3, H, W) and ``rows`` (B, N) the position rows of its patches on the full grid.
        """
        return self.read(*tower_features(self.tower, pixels, rows))

    def read(self, features: Tensor, whole: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Predictions from patch features (B, N, D) and the class state (B, D)."""
        outputs = self.patch_head(self.norm(features)).split(list(self.sizes.values()), dim=-1)
        found = dict(zip(self.sizes, outputs, strict=True))
        found["radius"] = self.radius_head(self.norm(features))
        found["place"] = self.place_head(self.norm(features))
        found["share"] = self.share_head(self.norm(features))[..., 0]
        return found, self.class_head(whole)


def tower_features(tower: CLIPVisionModel, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Patch states before the last layer (B, N, D) and the class state after it (B, D), for any window of the grid."""
    parts = tower.embeddings
    patches = parts.patch_embedding(pixels).flatten(2).transpose(1, 2)
    first = parts.class_embedding.expand(len(pixels), 1, -1)
    positions = F.pad(rows + 1, (1, 0))  # row 0 is the class token's
    hidden = tower.pre_layrnorm(torch.cat([first, patches], dim=1) + parts.position_embedding(positions))
    *layers, last = tower.encoder.layers
    for layer in layers:
        hidden = layer(hidden, None)
    # Only the class token is read after the last layer, so only its query is computed.
    normed, attention = last.layer_norm1(hidden), last.self_attn
    heads = (attention.num_heads, attention.head_dim)
    query = attention.q_proj(normed[:, :1]).unflatten(-1, heads).transpose(1, 2)
    key, value = (proj(normed).unflatten(-1, heads).transpose(1, 2) for proj in (attention.k_proj, attention.v_proj))
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    whole = hidden[:, :1] + attention.out_proj(mixed)
    whole = whole + last.mlp(last.layer_norm2(whole))
    return hidden[:, 1:], tower.post_layernorm(whole[:, 0])


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


def losses(patches: dict[str, Tensor], whole: Tensor, labels: dict[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
    """All training losses by name, each a mean over the entries it applies to."""
    weight = torch.ones(KINDS)
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
    for name in ("thing", "shape", "colour", "character", "position", "offset", "radius"):
        batch[name] = torch.stack([torch.from_numpy(getattr(t, name))[r] for t, r in zip(truths, rows, strict=True)])
    middle = (GRID - 1) / 2
    batch["place"] = torch.stack([rows % GRID - middle, rows // GRID - middle], dim=-1) / middle  # x, y from -1 to 1
    return batch


def share_right(predicted: Tensor, labels: dict[str, Tensor], name: str) -> float:
    """Accuracy per patch, on things for the shape, on characters for the character; NaN where there are none."""
    valid = labels["colour" if name == "shape" else name] != IGNORE
    return (predicted.argmax(-1) == labels[name])[valid].float().mean().item()


@torch.no_grad()
def validate(model: TowerWithHeads, pictures: int = 48) -> dict[str, float]:
    """Accuracy per labelled patch on whole validation pictures; shape on things only, background apart.

    Of offset, radius and place the mean error, in patches; of shares that of their sum over a thing.
    """
    names = ("shape", "background", "colour", "character", "position", "offset", "radius", "place", "sum", "pairs")
    hits: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, pictures, 8):
        scenes = [scene("validation", index) for index in range(start, start + 8)]
        rows = torch.arange(GRID * GRID).expand(8, -1)
        labels = collect([patch_labels(s) for s in scenes], rows)
        patches, whole = model(to_tensor([np.asarray(render(s)) for s in scenes]), rows)
        kind = patches["shape"].argmax(-1) == labels["shape"]
        on_thing = labels["colour"] != IGNORE
        hits["shape"].append(kind[on_thing])
        hits["background"].append(kind[labels["shape"] == len(SHAPES)])
        for name in ("colour", "character", "position"):
            hits[name].append((patches[name].argmax(-1) == labels[name])[labels[name] != IGNORE])
        hits["offset"].append((patches["offset"] - labels["offset"])[on_thing].abs().flatten())
        hits["place"].append((patches["place"] - labels["place"]).abs().flatten() * (GRID - 1) / 2)
        hits["radius"].append((patches["radius"][..., 0] - labels["radius"])[on_thing].abs())
        sums = torch.zeros(len(scenes), MOST + 1).scatter_add_(1, labels["thing"] + 1, patches["share"].exp())[:, 1:]
        hits["sum"].append((sums - 1)[sums > 0].abs())
        targets = torch.stack([global_targets(s, (0, 0, GRID)) for s in scenes])
        pairs = len(SHAPES) * len(COLOUR_NAMES)
        hits["pairs"].append(((whole[:, :pairs] > 0) == (targets[:, :pairs] > 0))[targets[:, :pairs] > 0])
    return {name: torch.cat(values).float().mean().item() for name, values in hits.items()}


def optimisers(model: TowerWithHeads, plan: TowerPlan) -> list[torch.optim.Optimizer]:
    """Muon for values, outputs and MLPs, slow AdamW for queries and keys, AdamW for everything else.

    Muon on queries and keys would wipe out the local start within fifty steps, and little is learnt without it.
    """
    first, looking, matrices, others = [], [], [], []
    for name, parameter in model.named_parameters():
        if "patch_embedding" in name:
            first.append(parameter)
        elif "q_proj" in name or "k_proj" in name or "position_embedding" in name:
            looking.append(parameter)
        else:
            (matrices if "encoder" in name and parameter.ndim == 2 else others).append(parameter)
    groups = [
        {"params": first, "lr": plan.first_rate},
        {"params": looking, "lr": plan.looking_rate},
        {"params": others, "lr": plan.other_rate},
    ]
    return [
        Muon(matrices, lr=plan.matrix_rate, weight_decay=0.02),
        torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_tower(
    run: Path, plan: TowerPlan, seed: int = 0, stage: str = "tower", start: TowerWithHeads | None = None
) -> TowerWithHeads:
    """Run or resume the stage, on a tower made before if there is one, and return the trained tower with its heads."""
    torch.manual_seed(seed)
    model, log, path = start or TowerWithHeads(), Log(run, stage), run / f"{stage}.pt"
    tools = optimisers(model, plan)
    state: dict[str, Any] = load(path) or {"step": 0}
    last = plan.steps if plan.stop is None else plan.stop
    if state["step"]:
        model.load_state_dict(state["model"], strict=state["step"] < last)
    if state["step"] >= last:
        return model
    if plan.ramps and not state["step"]:
        add_ramps(model.tower)
    for tool, saved in zip(tools, state.get("optimisers", []), strict=False):
        tool.load_state_dict(saved)
    hits: list[list[float]] = []
    first_full = int(plan.steps * (1 - plan.full_share))
    for step in tqdm(range(state["step"], last), stage, mininterval=5):
        set_rate(tools, plan.peak * learning_rate(step, plan.steps, hold=plan.hold))
        pixels, rows, labels, targets = make_batch(step, plan, step >= first_full)
        outputs = model(pixels, rows)
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
