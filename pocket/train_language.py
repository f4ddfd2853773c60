"""Stages 2 and 3: teach the language model to answer from the tower's features, then train both together.

Contract: reads ``tower.pt``, writes ``features.npz`` (cached features for the early phases) and ``language.pt``
(checkpoint, resumable) into the run folder. Question types arrive a few at a time, visual tokens go from few to all
576; the last phases see every token of fresh pictures, so the model has not learnt to live with dropped ones.
"""

from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from adaptprune.tabletop.labels import IGNORE
from adaptprune.tabletop.render import render
from adaptprune.tabletop.scenes import Scene, scene
from adaptprune.tabletop.vocabulary import CHARACTERS, COLOUR_NAMES, COLUMNS, GRID, ROWS, SHAPES
from pocket.looking import Looking, share_error
from pocket.mentions import (
    COUNT_WEIGHTS,
    LOOKUP_LAYER,
    MOST,
    NEIGHBOUR_LAYER,
    NUMBERS,
    CompareHead,
    MentionHeads,
    Mentions,
)
from pocket.model import IMAGE_TOKENS, make_model, make_tokenizer
from pocket.muon import Muon
from pocket.plans import LanguagePlan, Phase
from pocket.runs import Log, load, save, set_rate
from pocket.samples import Sample, sample
from pocket.start import to_tensor
from pocket.train_tower import (
    TowerPlan,
    TowerWithHeads,
    collect,
    global_targets,
    losses,
    total_loss,
    tower_features,
)
from pocket.train_tower import optimisers as tower_optimisers
from pocket.turns import Packed, Words, mask

BLIND_LAYERS = 2  # a model that may look in its first layers finishes there, and then pruning later costs nothing
COMPARE_WEIGHT = 0.5
FIRST_FRESH = 1_000_000  # train indices from here on were not seen by the tower or in the cached phases


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
        width = self.llava.config.text_config.hidden_size
        self.mention_heads, self.number_head = MentionHeads(width), nn.Linear(width, NUMBERS)
        self.compare_head, self.centre_head = CompareHead(width), nn.Linear(width, 1)
        self.area_head = nn.Linear(width, 1)
        self.share_head, self.late_count = nn.Linear(width, 1), nn.Linear(width, MOST + 1)
        self.looking = Looking(self.llava.model.language_model)
        self._blind_mask: Tensor | None = None
        self._states: dict[int, Tensor] = {}
        layers = self.llava.model.language_model.layers
        for layer in layers[:BLIND_LAYERS]:
            layer.register_forward_pre_hook(self._hide, with_kwargs=True)
        for number in (LOOKUP_LAYER, NEIGHBOUR_LAYER):
            layers[number].register_forward_hook(partial(self._note, number))

    def _note(self, number: int, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self._states[number] = output

    def mentions(self, packed: Packed, mentions: Mentions, pairs: bool, many: bool) -> tuple[Tensor, dict[str, float]]:
        """Loss and right answers of the mention heads in the last forward pass; ``pairs``: compare phrases too."""
        text = packed.ids.shape[1]
        early, late = (self._states[number][:, -text:] for number in (LOOKUP_LAYER, NEIGHBOUR_LAYER))
        loss, right = self.mention_heads((early, late), mentions, many)
        if not pairs or not (mentions.compared != IGNORE).any():
            return loss, right
        more, shares = self.compare_head(late, mentions)
        return loss + COMPARE_WEIGHT * more, right | shares

    def _hide(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return (args, kwargs) if self._blind_mask is None else (args, {**kwargs, "attention_mask": self._blind_mask})

    def forward(
        self, features: Tensor, keep: Tensor, packed: Packed, blind: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at the answer positions (A, V), their targets (A,) and the projected visual tokens (B, K, D).

        ``keep`` (B, K) are positions behind the first visual token, up to 1151 in rows of two pictures.
        """
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

    def measure(self, visual: Tensor, numbers: Tensor) -> Tensor:
        """Loss of reading place and size of things off their visual tokens."""
        known = ~numbers[..., 0].isnan()
        found = self.number_head(F.rms_norm(visual[known], visual.shape[-1:]))
        return F.smooth_l1_loss(found, numbers[known], beta=0.25)

    def find_centres(self, visual: Tensor, centre: Tensor) -> Tensor:
        """Loss of telling the token that holds the centre of its thing from the other tokens of the thing."""
        known = centre != IGNORE
        logits = self.centre_head(F.rms_norm(visual[known], visual.shape[-1:]))[:, 0]
        return F.binary_cross_entropy_with_logits(logits, centre[known].float())

    def find_areas(self, visual: Tensor, area: Tensor) -> Tensor:
        """Loss of telling off a visual token how many patches its thing has."""
        known = ~area.isnan()
        found = self.area_head(F.rms_norm(visual[known], visual.shape[-1:]))[:, 0]
        return F.smooth_l1_loss(found, area[known] - 2, beta=0.1)

    def find_shares(self, visual: Tensor, thing: Tensor) -> Tensor:
        """Loss of telling off a visual token how much of its thing it stands for."""
        return share_error(self.share_head(F.rms_norm(visual, visual.shape[-1:]))[..., 0], thing)

    def look(self, batch: Sample) -> tuple[Tensor, dict[str, float]]:
        """Loss of looking where the words of the questions point, and of knowing how many things are there."""
        loss, parts = self.looking.loss(batch.mentions, batch.looks, len(self.words.prefix))
        mentions = batch.mentions
        late = self._states[NEIGHBOUR_LAYER][:, -batch.packed.ids.shape[1] :][mentions.row, mentions.place]
        logits, count = self.late_count(F.rms_norm(late, late.shape[-1:])), mentions.classes[:, 0]
        parts["late count"] = (logits.argmax(-1) == count).float().mean().item()
        return loss + F.cross_entropy(logits, count, torch.tensor(COUNT_WEIGHTS)), parts

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


@torch.no_grad()
def look(seer: TowerWithHeads, scenes: list[Scene]) -> Tensor:
    """Features of whole pictures, (B, 576, D)."""
    rows = torch.arange(IMAGE_TOKENS).expand(len(scenes), -1)
    return tower_features(seer.tower, to_tensor([np.asarray(render(s)) for s in scenes]), rows)[0]


def cache_features(seer: TowerWithHeads, path: Path, count: int) -> np.ndarray:
    """Features of the first ``count`` training pictures as float16, made once and kept in a file."""
    if not count:
        return np.zeros((0, IMAGE_TOKENS, seer.tower.config.hidden_size), dtype=np.float16)
    if path.exists():
        found = np.load(path, mmap_mode="r")
        if len(found) >= count:
            return found
    made = []
    for start in tqdm(range(0, count, 10), "features", mininterval=5):
        made.append(look(seer, [scene("train", i) for i in range(start, start + 10)]).to(torch.float16).numpy())
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
        batch = sample(trainer.words, [scene("validation", i) for i in range(start, start + 10)], phase, 17)
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
    core = trainer.llava.model.language_model
    matrices = [p for p in core.layers.parameters() if p.ndim == 2]
    others = [p for p in core.parameters() if all(p is not m for m in matrices)]
    others += [*trainer.llava.model.multi_modal_projector.parameters(), *trainer.mention_heads.parameters()]
    for head in (
        trainer.number_head,
        trainer.compare_head,
        trainer.centre_head,
        trainer.area_head,
        trainer.share_head,
        trainer.late_count,
    ):
        others += list(head.parameters())
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
        scenes = [scene("train", FIRST_FRESH + 100 * (phase.first + step) + i) for i in range(phase.pictures)]
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
        extra = total_loss(dense, plan.detail, plan.detail, plan.looks)
    elif phase.fresh:
        features = look(trainer.seer, scenes)
    else:
        features = torch.from_numpy(np.stack([cache[int(i)] for i in order])).float()
    kept = batch.kept(features)
    logits, targets, visual = trainer(kept, batch.keep, batch.packed, phase.blind)
    right, asked = exact(logits.detach(), targets, batch.packed)
    answer, align = weighted(logits, targets, batch.packed), trainer.align(visual, batch.targets)
    loss = answer + plan.align_weight * align + 0.3 * extra
    parts = {"answer": answer.item(), "align": align.item(), "tower": extra.item()}
    if phase.mentions:
        looked_up, shares = trainer.mentions(batch.packed, batch.mentions, plan.centres, phase.many)
        measured = trainer.measure(visual, batch.targets["numbers"])
        loss = loss + plan.mention_weight * looked_up + plan.measure_weight * measured
        parts |= {"measure": measured.item(), **shares}
    if plan.centres:
        centred = trainer.find_centres(visual, batch.targets["centre"])
        loss = loss + plan.align_weight * centred
        parts["centre"] = centred.item()
    if plan.areas:
        sized = trainer.find_areas(visual, batch.targets["area"])
        loss = loss + sized
        parts["area"] = sized.item()
    if plan.looks:
        shared = trainer.find_shares(visual, batch.looks.thing)
        looked, more = trainer.look(batch)
        loss = loss + 0.5 * shared + plan.look_weight * looked
        parts |= {"share": shared.item(), **more}
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
    run: Path, plan: LanguagePlan, start: TowerWithHeads | PocketTrainer, seed: int = 0, stage: str = "language"
) -> PocketTrainer:
    """Run or resume a stage, from a tower or from an earlier stage, and return the trained model."""
    torch.manual_seed(seed + 1)
    trainer = start if isinstance(start, PocketTrainer) else PocketTrainer(start)
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
    cache = cache_features(trainer.seer, run / f"features-{plan.features or stage}.npy", cached)
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
