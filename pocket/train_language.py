"""Stages 2 and 3: teach the language model to answer from the tower's features, then train both together.

Contract: reads ``tower.pt``, writes ``features.npz`` (cached features for the early phases) and ``language.pt``
(checkpoint, resumable) into the run folder. Question types arrive a few at a time, visual tokens go from few to all
576; the last phases see every token of fresh pictures, so the model has not learnt to live with dropped ones.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from adaptprune.tabletop.labels import IGNORE, PatchLabels, patch_labels
from adaptprune.tabletop.questions import Question, questions
from adaptprune.tabletop.render import render
from adaptprune.tabletop.scenes import Scene, scene
from adaptprune.tabletop.vocabulary import CHARACTERS, COLOUR_NAMES, COLUMNS, GRID, ROWS, SHAPES
from pocket.model import IMAGE_TOKENS, make_model, make_tokenizer
from pocket.muon import Muon
from pocket.runs import Log, load, save, set_rate
from pocket.train_tower import (
    LOSS_WEIGHTS,
    TowerPlan,
    TowerWithHeads,
    collect,
    global_targets,
    losses,
    to_tensor,
    tower_features,
)
from pocket.train_tower import optimisers as tower_optimisers
from pocket.turns import Packed, Words, choose_patches, mask, pack

BLIND_LAYERS = 2  # a model that may look in its first layers finishes there, and then pruning later costs nothing
FIRST_FRESH = 1_000_000  # train indices from here on were not seen by the tower or in the cached phases


@dataclass(frozen=True)
class Phase:
    """Some steps with fixed question types and number of visual tokens."""

    steps: int
    tokens: int
    types: tuple[str, ...]
    per_type: int
    pictures: int
    fresh: bool = False  # render and look at new pictures instead of reading cached features
    joint: bool = False  # train the tower too
    simple: bool = False  # of existence questions, only those about a colour or a shape alone
    blind: bool = False  # hide the picture from the text in the first BLIND_LAYERS layers
    rates: tuple[float, float] = (1.0, 1.0)  # factor on the learning rates at start and end


@dataclass(frozen=True)
class LanguagePlan:
    """All phases of the language model."""

    phases: tuple[Phase, ...]
    cached: int = 2400
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    tower_share: float = 0.1  # the tower's rates in the joint phases, relative to its own stage
    align_weight: float = 0.3
    save_every: int = 100
    validate_every: int = 100


class PocketTrainer(nn.Module):
    """The whole model plus what only training needs: the tower's heads and the word groups for alignment."""

    def __init__(self, seer: TowerWithHeads) -> None:
        super().__init__()
        self.seer = seer
        self.llava = make_model()
        self.llava.model.vision_tower = seer.tower
        nn.init.normal_(self.llava.get_input_embeddings().weight, std=0.05)
        self.words = Words(make_tokenizer())
        ids = self.words.ids
        self.groups = {
            "colour": torch.tensor([ids[name] for name in COLOUR_NAMES]),
            "shape": torch.tensor([ids[name] for name in SHAPES]),
            "row": torch.tensor([ids[name] for name in ROWS]),
            "column": torch.tensor([ids[name] for name in COLUMNS]),
            # a character at the start of a word and one inside it are different tokens
            "character": torch.tensor(
                [ids[c.lower()] for c in CHARACTERS] + [ids["##" + c.lower()] for c in CHARACTERS]
            ),
        }
        self._blind_mask: Tensor | None = None
        for layer in self.llava.model.language_model.layers[:BLIND_LAYERS]:
            layer.register_forward_pre_hook(self._hide, with_kwargs=True)

    def _hide(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return (args, kwargs) if self._blind_mask is None else (args, {**kwargs, "attention_mask": self._blind_mask})

    def forward(
        self, features: Tensor, keep: Tensor, packed: Packed, blind: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at the answer positions (A, V), their targets (A,) and the projected visual tokens (B, K, D)."""
        embed = self.llava.get_input_embeddings()
        visual = self.llava.model.multi_modal_projector(features)
        batch = len(features)
        prefix = torch.tensor(self.words.prefix).expand(batch, -1)
        inputs = torch.cat([embed(prefix), visual, embed(packed.ids)], dim=1)
        before = prefix.shape[1]
        positions = torch.cat([torch.arange(before).expand(batch, -1), before + keep, packed.position], dim=1)
        text = before + keep.shape[1]  # where the text starts
        seen = mask(packed, text)
        if blind:
            self._blind_mask = seen.clone()
            self._blind_mask[:, :, text:, before:text] = False
        hidden = self.llava.model.language_model(
            inputs_embeds=inputs, attention_mask=seen, position_ids=positions, use_cache=False
        ).last_hidden_state[:, text:]
        self._blind_mask = None
        answered = packed.target != IGNORE
        return self.llava.lm_head(hidden[answered]), packed.target[answered], visual

    def align(self, visual: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of visual tokens against the words for what they show, by cosine."""
        table = F.normalize(self.llava.get_input_embeddings().weight, dim=-1)
        seen = F.normalize(visual, dim=-1)
        terms = []
        for name, group in self.groups.items():
            valid = targets[name] != IGNORE
            if valid.any():
                terms.append(F.cross_entropy(16 * seen[valid] @ table[group].T, targets[name][valid]))
        return torch.stack(terms).mean()


def align_targets(picture: Scene, labels: PatchLabels) -> np.ndarray:
    """Entries of the word groups for all patches, (5, 576): colour, shape, row, column, character."""
    on_thing = labels.thing >= 0
    which = np.where(on_thing, labels.thing, 0)
    cells = [thing.cell.split() for thing in picture.things]
    rows = np.array([ROWS.index(cell[0]) for cell in cells])[which]
    columns = np.array([COLUMNS.index(cell[1]) for cell in cells])[which]
    inside = labels.position > 0
    character = np.where(labels.character == IGNORE, IGNORE, labels.character + len(CHARACTERS) * inside)
    shape = np.where(on_thing, labels.shape, IGNORE)
    where = [np.where(on_thing, values, IGNORE) for values in (rows, columns)]
    return np.stack([labels.colour, shape, *where, character])


GROUP_NAMES = ("colour", "shape", "row", "column", "character")


@torch.no_grad()
def look(seer: TowerWithHeads, scenes: list[Scene]) -> Tensor:
    """Features of whole pictures, (B, 576, D)."""
    rows = torch.arange(IMAGE_TOKENS).expand(len(scenes), -1)
    return tower_features(seer.tower, to_tensor([np.asarray(render(s)) for s in scenes]), rows)[0]


def cache_features(seer: TowerWithHeads, run: Path, count: int) -> np.ndarray:
    """Features of the first ``count`` training pictures as float16, made once and kept in the run folder."""
    path = run / "features.npy"
    if path.exists():
        found = np.load(path, mmap_mode="r")
        if len(found) >= count:
            return found
    made = []
    for start in tqdm(range(0, count, 10), "features", mininterval=5):
        made.append(look(seer, [scene("train", i) for i in range(start, start + 10)]).to(torch.float16).numpy())
    np.save(path, np.concatenate(made))
    return np.load(path, mmap_mode="r")


@dataclass
class Sample:
    """Scenes of a batch, which patches they keep and their questions."""

    scenes: list[Scene]
    labels: list[PatchLabels]
    keep: Tensor
    packed: Packed
    targets: dict[str, Tensor]


def is_simple(question: Question) -> bool:
    """False for existence questions that name both a colour and a shape, the last to be learnt."""
    known = question.question.rstrip("?").split()
    return question.type != "existence" or not (set(known) & set(COLOUR_NAMES) and set(known) & set(SHAPES))


def sample(words: Words, scenes: list[Scene], phase: Phase, seed: int) -> Sample:
    """Questions, kept patches and alignment targets for some scenes; a function of its arguments alone."""
    draw = np.random.RandomState(seed)
    labels = [patch_labels(s) for s in scenes]
    keep = np.stack([choose_patches(s, t, phase.tokens, draw) for s, t in zip(scenes, labels, strict=True)])
    asked = [questions(s, seed, phase.types, phase.per_type) for s in scenes]
    if phase.simple:
        asked = [[question for question in turns if is_simple(question)] for turns in asked]
    truth = np.stack([align_targets(s, t)[:, k] for s, t, k in zip(scenes, labels, keep, strict=True)])
    targets = {name: torch.from_numpy(truth[:, i]) for i, name in enumerate(GROUP_NAMES)}
    return Sample(scenes, labels, torch.from_numpy(keep), pack(words, asked), targets)


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
        batch = sample(trainer.words, [scene("validation", i) for i in range(start, start + 10)], phase, 17)
        features = look(trainer.seer, batch.scenes)
        features = features.gather(1, batch.keep[:, :, None].expand(-1, -1, features.shape[-1]))
        logits, targets, _ = trainer(features, batch.keep, batch.packed, phase.blind)
        for total, found in zip((right, asked), exact(logits, targets, batch.packed), strict=True):
            total.update(found)
    return {name: round(right[name] / asked[name], 3) for name in asked}


def optimisers(trainer: PocketTrainer, plan: LanguagePlan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; the last two are the tower's, for the joint phases."""
    core = trainer.llava.model.language_model
    matrices = [p for p in core.layers.parameters() if p.ndim == 2]
    others = [p for p in core.parameters() if all(p is not m for m in matrices)]
    others += list(trainer.llava.model.multi_modal_projector.parameters())
    usual, share = TowerPlan(), plan.tower_share
    gentle = TowerPlan(
        matrix_rate=share * usual.matrix_rate,
        other_rate=share * usual.other_rate,
        looking_rate=share * usual.looking_rate,
        first_rate=share * usual.first_rate,
    )
    return [
        Muon(matrices, lr=plan.matrix_rate, weight_decay=0.02),
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


def step_loss(
    trainer: PocketTrainer, plan: LanguagePlan, phase: Phase, step: int, cache: np.ndarray
) -> tuple[Tensor, dict[str, float], tuple[Counter[str], Counter[str]]]:
    """Loss of one step, its parts and the exact answers of the batch."""
    if phase.fresh:
        scenes = [scene("train", FIRST_FRESH + 100 * step + i) for i in range(phase.pictures)]
    else:
        order = np.random.RandomState(step).choice(len(cache), phase.pictures, replace=False)
        scenes = [scene("train", int(i)) for i in order]
    batch = sample(trainer.words, scenes, phase, step + 1)
    extra = torch.zeros(())
    if phase.joint:
        rows = torch.arange(IMAGE_TOKENS).expand(len(scenes), -1)
        features, whole = tower_features(trainer.seer.tower, to_tensor([np.asarray(render(s)) for s in scenes]), rows)
        outputs = trainer.seer.read(features, whole)
        truth = torch.stack([global_targets(s, (0, 0, GRID)) for s in scenes])
        dense = losses(*outputs, collect(batch.labels, rows), truth)
        extra = torch.stack([LOSS_WEIGHTS[name] * value for name, value in dense.items()]).sum()
    elif phase.fresh:
        features = look(trainer.seer, scenes)
    else:
        features = torch.from_numpy(np.stack([cache[int(i)] for i in order])).float()
    kept = features.gather(1, batch.keep[:, :, None].expand(-1, -1, features.shape[-1]))
    logits, targets, visual = trainer(kept, batch.keep, batch.packed, phase.blind)
    answer, align = F.cross_entropy(logits, targets), trainer.align(visual, batch.targets)
    parts = {"answer": answer.item(), "align": align.item(), "tower": extra.item()}
    return answer + plan.align_weight * align + 0.3 * extra, parts, exact(logits.detach(), targets, batch.packed)


def train_language(run: Path, plan: LanguagePlan, seer: TowerWithHeads, seed: int = 0) -> PocketTrainer:
    """Run or resume the stages and return the trained model."""
    torch.manual_seed(seed + 1)
    trainer, log, path = PocketTrainer(seer), Log(run, "language"), run / "language.pt"
    tools = optimisers(trainer, plan)
    state = load(path)
    done = 0
    if state is not None:
        trainer.load_state_dict(state["model"])
        done = state["step"]
        for tool, saved in zip(tools, state["optimisers"], strict=True):
            tool.load_state_dict(saved)
    cache = cache_features(seer, run, plan.cached)
    total = sum(phase.steps for phase in plan.phases)
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for step in tqdm(range(done, total), "language", initial=done, total=total, mininterval=5):
        number, phase, rate = locate(plan, step)
        used = tools if phase.joint else tools[:2]
        set_rate(used, rate * min(1.0, (step + 1) / 50))
        loss, parts, (right, asked) = step_loss(trainer, plan, phase, step, cache)
        trainer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        for tool in used:
            tool.step()
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
