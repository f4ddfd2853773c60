"""Stages 2 and 3: teach the language model to answer from the tower's features, then train both together.

Contract: reads ``tower.pt``, writes ``features.npz`` (cached features for the early phases) and ``language.pt``
(checkpoint, resumable) into the run folder. Question types arrive a few at a time, visual tokens go from few to all
576; the last phases see every token of fresh pictures, so the model has not learnt to live with dropped ones.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from adaptprune.tabletop.labels import IGNORE
from adaptprune.tabletop.render import render
from adaptprune.tabletop.scenes import scene
from adaptprune.tabletop.vocabulary import GRID
from pocket.muon import Muon
from pocket.pixels import to_tensor
from pocket.plans import LanguagePlan, Phase
from pocket.precision import halved
from pocket.runs import Log, load, moved, save, set_rate
from pocket.samples import Sample, sample
from pocket.train_tower import TowerPlan, TowerWithHeads, collect, global_targets, losses, total_loss
from pocket.train_tower import optimisers as tower_optimisers
from pocket.trainer import PocketTrainer, look
from pocket.turns import IMAGE_TOKENS, Packed

FIRST_FRESH = 1_000_000  # train indices from here on were not seen by the tower or in the cached phases


def cache_features(seer: TowerWithHeads, path: Path, count: int, half: bool) -> np.ndarray:
    """Features of the first ``count`` training pictures as float16, made once and kept in a file."""
    if not count:
        return np.zeros((0, IMAGE_TOKENS, seer.architecture.width), dtype=np.float16)
    if path.exists():
        found = np.load(path, mmap_mode="r")
        if len(found) >= count:
            return found
    made = []
    for start in tqdm(range(0, count, 10), "features", mininterval=5):
        seen = look(seer, [scene("train", i) for i in range(start, start + 10)], half)
        made.append(seen.to(torch.float16).cpu().numpy())
    np.save(path, np.concatenate(made))
    return np.load(path, mmap_mode="r")


def exact(logits: Tensor, targets: Tensor, packed: Packed) -> tuple[Counter[str], Counter[str]]:
    """Turns answered exactly and turns asked, by type. Greedy decoding is right where every argmax is."""
    answered = packed.target != IGNORE
    row, _ = answered.nonzero(as_tuple=True)
    turn = packed.turn[answered]
    wrong = {
        (b, t) for b, t, ok in zip(row.tolist(), turn.tolist(), logits.argmax(-1) == targets, strict=True) if not ok
    }
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for b, types in enumerate(packed.types):
        for t, name in enumerate(types):
            asked[name] += 1
            right[name] += (b, t) not in wrong
    return right, asked


@torch.no_grad()
def validate(trainer: PocketTrainer, phase: Phase, pictures: int = 80) -> dict[str, float]:
    """Exact answers by type on validation pictures, with the phase's visual tokens."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for start in range(0, pictures, 10):
        scenes = [scene("validation", i) for i in range(start, start + 10)]
        batch = moved(sample(trainer.words, scenes, phase, 17), trainer.device)
        features = batch.kept(look(trainer.seer, batch.scenes))
        logits, targets, _ = trainer(features, batch.keep, batch.packed, phase.blind)
        found = [exact(logits, targets, batch.packed)]
        if batch.pairs is not None:
            logits, targets, _ = trainer(*batch.paired(features), batch.pairs, phase.blind)
            found.append(exact(logits, targets, batch.pairs))
        for more_right, more_asked in found:
            right.update(more_right)
            asked.update(more_asked)
    return {name: round(right[name] / asked[name], 3) for name in asked}


def optimisers(trainer: PocketTrainer, plan: LanguagePlan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; the last two are the tower's, for the joint phases."""
    fast, slow = trainer.architecture.matrices(trainer.model)
    matrices = {id(parameter) for parameter in (*fast, *slow)}
    others = [*trainer.core.parameters(), *trainer.architecture.projector(trainer.model).parameters()]
    others = [p for p in others if id(p) not in matrices] + trainer.heads()
    groups = [{"params": fast, "lr": plan.matrix_rate}, {"params": slow, "lr": plan.looking_share * plan.matrix_rate}]
    usual, share = TowerPlan(), plan.tower_share
    gentle = TowerPlan(
        matrix_rate=share * usual.matrix_rate,
        other_rate=share * usual.other_rate,
        looking_rate=share * usual.looking_rate,
        first_rate=share * usual.first_rate,
    )
    return [
        Muon([group for group in groups if group["params"]], weight_decay=0.02, half=plan.half),
        torch.optim.AdamW(others, lr=plan.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
        *tower_optimisers(trainer.seer, gentle),
    ]


def locate(plan: LanguagePlan, step: int) -> tuple[int, Phase, float]:
    """Number of the phase that a step belongs to, the phase, and the factor on the learning rates."""
    for number, phase in enumerate(plan.phases):
        if step < phase.steps:
            start, end = phase.rates
            return number, phase, start + (end - start) * step / phase.steps
        step -= phase.steps
    raise ValueError(f"step is {step} past the last phase")


def draw_batch(trainer: PocketTrainer, plan: LanguagePlan, phase: Phase, step: int, count: int) -> tuple[Sample, Any]:
    """Batch of one step on the trainer's device, and which pictures it has of the ``count`` cached ones."""
    order = None
    if phase.fresh:
        scenes = [scene("train", FIRST_FRESH + 100 * (phase.first + step) + i) for i in range(phase.pictures)]
    else:
        order = np.random.RandomState(step).choice(count, phase.pictures, replace=False)
        scenes = [scene("train", int(i)) for i in order]
    return moved(sample(trainer.words, scenes, phase, step + 1, plan.looks), trainer.device), order


def see(trainer: PocketTrainer, plan: LanguagePlan, phase: Phase, batch: Sample) -> tuple[Tensor, Tensor]:
    """Kept features of fresh pictures, and the tower's loss where it is trained too."""
    if not phase.joint:
        return batch.kept(look(trainer.seer, batch.scenes, plan.half)), torch.zeros((), device=trainer.device)
    rows = torch.arange(IMAGE_TOKENS).expand(len(batch.scenes), -1)
    pixels = to_tensor([np.asarray(render(s)) for s in batch.scenes])
    with halved(trainer.device, plan.half):
        seen = trainer.seer.features(pixels.to(trainer.device), rows.to(trainer.device))
    features, whole = moved(seen, torch.float32)
    truth = torch.stack([global_targets(s, (0, 0, GRID)) for s in batch.scenes])
    labels, truth = moved((collect(batch.labels, rows), truth), trainer.device)
    place = plan.detail and trainer.architecture.knows_place
    dense = losses(*trainer.seer.read(features, whole), labels, truth)
    return batch.kept(features), total_loss(dense, plan.detail, place, plan.shares)


def taught(
    trainer: PocketTrainer, plan: LanguagePlan, phase: Phase, batch: Sample, visual: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Everything but the answers that the last forward pass is taught: the loss, and what to log of it."""
    placed = trainer.knowing_place(visual)
    align = trainer.align(visual, placed, batch.targets)
    loss, parts = plan.align_weight * align, {"align": align.item()}

    def add(weight: float, name: str, term: Tensor, more: dict[str, float] | None = None) -> None:
        nonlocal loss
        loss = loss + weight * term
        parts.update({name: term.item()} if more is None else more)

    if phase.mentions:
        add(plan.mention_weight, "", *trainer.mentions(batch.packed, batch.mentions, plan.centres, phase.many))
        add(plan.measure_weight, "measure", trainer.measure(placed, batch.targets["numbers"]))
    if not trainer.architecture.knows_place:
        add(plan.place_weight, "place", trainer.find_places(placed, batch.keep))
    if plan.centres:
        add(plan.align_weight, "centre", trainer.find_centres(visual, batch.targets["centre"]))
    if plan.areas:
        add(1.0, "area", trainer.find_areas(visual, batch.targets["area"]))
    if plan.shares:
        add(0.5, "share", trainer.find_shares(visual, batch.targets["thing"]))
        add(plan.look_weight, "", *trainer.count_late(batch.packed, batch.mentions))
    if plan.looks:
        add(plan.look_weight, "", *trainer.look(batch))
    return loss, parts


def step_loss(
    trainer: PocketTrainer, plan: LanguagePlan, phase: Phase, step: int, cache: np.ndarray
) -> tuple[Tensor, dict[str, float], tuple[Counter[str], Counter[str]]]:
    """Loss of one step, its parts and the exact answers of the batch."""
    batch, order = draw_batch(trainer, plan, phase, step, len(cache))
    if order is None:
        kept, extra = see(trainer, plan, phase, batch)
    else:
        read = [cache[int(i)][places] for i, places in zip(order, batch.keep.cpu().numpy(), strict=True)]
        kept, extra = (
            torch.from_numpy(np.stack(read)).float().to(trainer.device),
            torch.zeros((), device=trainer.device),
        )
    logits, targets, visual = trainer(kept, batch.keep, batch.packed, phase.blind)
    right, asked = exact(logits.detach(), targets, batch.packed)
    answer = weighted(logits, targets, batch.packed)
    more, parts = taught(trainer, plan, phase, batch, visual)
    loss = answer + more + 0.3 * extra
    parts |= {"answer": answer.item(), "tower": extra.item()}
    if batch.pairs is not None:
        logits, targets, _ = trainer(*batch.paired(kept), batch.pairs, phase.blind)
        both = weighted(logits, targets, batch.pairs)
        more_right, more_asked = exact(logits.detach(), targets, batch.pairs)
        loss, right, asked = loss + 0.2 * both, right + more_right, asked + more_asked
        parts["pairs"] = both.item()
    return loss, parts, (right, asked)


def weighted(logits: Tensor, targets: Tensor, packed: Packed) -> Tensor:
    """Weighted mean of the answers' cross-entropy."""
    weight = packed.weight[packed.target != IGNORE]
    return (weight * F.cross_entropy(logits, targets, reduction="none")).sum() / weight.sum()


def train_language(
    run: Path, plan: LanguagePlan, trainer: PocketTrainer, stage: str = "language", device: str = "cpu"
) -> PocketTrainer:
    """Run or resume a stage on a model, which may come from an earlier stage, and return it."""
    trainer.to(device).half = plan.half
    log, path = Log(run, stage), run / f"{stage}.pt"
    total = sum(phase.steps for phase in plan.phases)
    tools = optimisers(trainer, plan)
    state = load(path)
    done = 0
    if state is not None:
        done = state["step"]
        trainer.load_state_dict(state["model"], strict=done < total)
        if done >= total:
            return trainer
        for tool, saved in zip(tools, state["optimisers"], strict=True):
            tool.load_state_dict(saved)
    cached = plan.cached if any(not phase.fresh for phase in plan.phases) else 0
    cache = cache_features(trainer.seer, run / f"features-{plan.features or stage}.npy", cached, plan.half)
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for step in tqdm(range(done, total), stage, initial=done, total=total, mininterval=5):
        number, phase, rate = locate(plan, step)
        used = tools if phase.joint else tools[:2]
        set_rate(used, rate * min(1.0, (step + 1) / plan.warmup))
        loss, parts, (right, asked) = step_loss(trainer, plan, phase, step, cache)
        trainer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        for tool in used:
            tool.step()
        if trainer.rein is not None:
            parts["rein"] = trainer.rein.tighten()
        seen["right"].update(right)
        seen["asked"].update(asked)
        if (step + 1) % 25 == 0:
            shares = {name: round(seen["right"][name] / count, 3) for name, count in seen["asked"].items()}
            log.write(step=step + 1, phase=number, **parts, train=shares)
            seen.clear()
        if (step + 1) % plan.validate_every == 0 or step + 1 == total:
            log.write(step=step + 1, phase=number, validation=validate(trainer, phase))
        last_of_phase = step + 1 == total or locate(plan, step + 1)[0] != number
        if (step + 1) % plan.save_every == 0 or last_of_phase:
            saved = [tool.state_dict() for tool in tools]
            save(path, {"step": step + 1, "model": trainer.state_dict(), "optimisers": saved})
    return trainer
