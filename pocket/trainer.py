"""The whole model with everything that only training needs: heads, word groups, and what layers are noted.

Contract: ``PocketTrainer(seer)`` makes a model of the tower's architecture around the tower of ``seer``; its
``forward`` reads packed turns exactly as the exported model reads the prompts that they stand for.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptprune.tabletop.labels import IGNORE
from adaptprune.tabletop.render import render
from adaptprune.tabletop.scenes import Scene
from adaptprune.tabletop.vocabulary import CHARACTERS, COLOUR_NAMES, COLUMNS, GRID, ROWS, SHAPES
from pocket.looking import Looking
from pocket.mentions import (
    COUNT_WEIGHTS,
    LOOKUP_LAYER,
    NEIGHBOUR_LAYER,
    NUMBERS,
    CompareHead,
    MentionHeads,
    Mentions,
)
from pocket.pixels import to_tensor
from pocket.precision import halved
from pocket.rein import Rein
from pocket.samples import Sample
from pocket.shares import MOST, share_error
from pocket.train_tower import TowerWithHeads
from pocket.turns import IMAGE_TOKENS, Packed, Words, mask

BLIND_LAYERS = 2  # a model that may look in its first layers finishes there, and then pruning later costs nothing
PLACE_LAYER = BLIND_LAYERS - 1  # where visual tokens have to know their place, if the tower does not
COMPARE_WEIGHT = 0.5
PLACES = ("row", "column")


class PocketTrainer(nn.Module):
    """The whole model plus what only training needs."""

    def __init__(self, seer: TowerWithHeads) -> None:
        super().__init__()
        self.seer, self.architecture = seer, seer.architecture
        self.model = self.architecture.make_model()
        self.architecture.put_tower(self.model, seer.tower)
        nn.init.normal_(self.model.get_input_embeddings().weight, std=0.05)
        self.words = Words(self.architecture)
        self.groups = self._word_groups()
        core = self.core
        width = core.config.hidden_size
        self.mention_heads, self.number_head = MentionHeads(width), nn.Linear(width, NUMBERS)
        self.compare_head, self.centre_head = CompareHead(width), nn.Linear(width, 1)
        self.area_head = nn.Linear(width, 1)
        self.share_head, self.late_count = nn.Linear(width, 1), nn.Linear(width, MOST + 1)
        self.place_head = nn.Linear(width, 2)
        self.looking = Looking(core) if self.architecture.normalised else None
        self.rein = None if self.architecture.normalised else self._reined(core)
        self.half = False  # matrix products in bfloat16
        self._blind_mask: Tensor | None = None
        self._states: dict[int, Tensor] = {}
        for layer in core.layers[:BLIND_LAYERS]:
            layer.register_forward_pre_hook(self._hide, with_kwargs=True)
        for number in (PLACE_LAYER, LOOKUP_LAYER, NEIGHBOUR_LAYER):
            core.layers[number].register_forward_hook(partial(self._note, number))

    @property
    def core(self) -> Any:
        """The language model without its output layer."""
        return self.model.model.language_model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.place_head.weight.device

    def heads(self) -> list[nn.Parameter]:
        """All that is thrown away after training, but for the tower's."""
        return [p for name, p in self.named_parameters() if name.split(".")[0].endswith(("heads", "head", "count"))]

    def _reined(self, core: Any) -> Rein:
        for layer in core.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                # scores of about 1 at the start, as behind a norm
                nn.init.normal_(projection.weight, std=projection.weight.shape[1] ** -0.5)
        return Rein(core)

    def _word_groups(self) -> dict[str, Tensor]:
        ids = self.words.ids
        # a character at the start of a word and one inside it are different tokens
        characters = [c.lower() for c in CHARACTERS] + ["##" + c.lower() for c in CHARACTERS]
        named = {"colour": COLOUR_NAMES, "shape": SHAPES, "row": ROWS, "column": COLUMNS, "character": characters}
        return {name: torch.tensor([ids[word] for word in group]) for name, group in named.items()}

    def _note(self, number: int, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self._states[number] = output

    def _hide(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return (args, kwargs) if self._blind_mask is None else (args, {**kwargs, "attention_mask": self._blind_mask})

    def _lay_out(self, visual: Tensor, keep: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L, D) and positions (axes, B, L) of whole rows."""
        embed, start = self.model.get_input_embeddings(), 0
        pieces, positions = [], []
        axes = len(self.architecture.positions(0, keep))

        def write(ids: list[int]) -> None:
            nonlocal start
            pieces.append(embed(torch.tensor(ids, dtype=torch.long, device=keep.device)).expand(len(keep), -1, -1))
            positions.append(torch.arange(start, start + len(ids), device=keep.device).expand(axes, len(keep), -1))
            start += len(ids)

        write(self.words.prefix)
        pictures = zip(visual.chunk(packed.pictures, dim=1), keep.chunk(packed.pictures, dim=1), strict=True)
        for number, (tokens, places) in enumerate(pictures):
            if number:
                write(self.words.between)
            pieces.append(tokens)
            positions.append(self.architecture.positions(start, places))
            start += self.architecture.span
        pieces.append(embed(packed.ids))
        positions.append(packed.position.expand(axes, -1, -1))
        return torch.cat(pieces, dim=1), torch.cat(positions, dim=2)

    def forward(
        self, features: Tensor, keep: Tensor, packed: Packed, blind: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at the answer positions (A, V), their targets (A,) and the projected visual tokens (B, K, D).

        ``keep`` (B, K) are patches of a picture, those of all pictures of a row one after another.
        """
        with halved(self.device, self.half):
            visual = self.architecture.project(self.model, features).float()
        inputs, positions = self._lay_out(visual, keep, packed)
        before = len(self.words.prefix)
        text = inputs.shape[1] - packed.ids.shape[1]  # where the text starts
        seen = mask(packed, text)
        if self.rein is not None:
            self.rein.split(text)
        if blind:
            self._blind_mask = seen.clone()
            self._blind_mask[:, :, text:, before:text] = False
        with halved(self.device, self.half):
            hidden = self.core(
                inputs_embeds=inputs,
                attention_mask=seen,
                position_ids=positions if len(positions) > 1 else positions[0],
                use_cache=False,
            ).last_hidden_state[:, text:]
        self._blind_mask = None
        if self.rein is not None:
            self.rein.split(0)  # the model may be asked plainly next
        answered = packed.target != IGNORE
        return self.model.lm_head(hidden[answered]), packed.target[answered], visual

    def knowing_place(self, visual: Tensor) -> Tensor:
        """Where the place of visual tokens is read: themselves, or their states after a layer of the last pass."""
        if self.architecture.knows_place:
            return visual
        before = len(self.words.prefix)
        return self._states[PLACE_LAYER][:, before : before + visual.shape[1]]

    def find_places(self, placed: Tensor, keep: Tensor) -> Tensor:
        """Loss of telling off visual tokens (B, K, D) which patch (B, K) they are."""
        middle = (GRID - 1) / 2
        truth = torch.stack([keep % GRID, keep // GRID], dim=-1) / middle - 1
        return F.smooth_l1_loss(self.place_head(F.rms_norm(placed, placed.shape[-1:])), truth, beta=0.1)

    def mentions(self, packed: Packed, mentions: Mentions, pairs: bool, many: bool) -> tuple[Tensor, dict[str, float]]:
        """Loss and right answers of the mention heads in the last forward pass; ``pairs``: compare phrases too."""
        text = packed.ids.shape[1]
        early, late = (self._states[number][:, -text:] for number in (LOOKUP_LAYER, NEIGHBOUR_LAYER))
        loss, right = self.mention_heads((early, late), mentions, many)
        if not pairs or not (mentions.compared != IGNORE).any():
            return loss, right
        more, shares = self.compare_head(late, mentions)
        return loss + COMPARE_WEIGHT * more, right | shares

    def measure(self, placed: Tensor, numbers: Tensor) -> Tensor:
        """Loss of reading place and size of things off their visual tokens."""
        known = ~numbers[..., 0].isnan()
        found = self.number_head(F.rms_norm(placed[known], placed.shape[-1:]))
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

    def count_late(self, packed: Packed, mentions: Mentions) -> tuple[Tensor, dict[str, float]]:
        """Loss of knowing how many things fit a phrase, one layer later, in the last forward pass."""
        late = self._states[NEIGHBOUR_LAYER][:, -packed.ids.shape[1] :][mentions.row, mentions.place]
        logits, count = self.late_count(F.rms_norm(late, late.shape[-1:])), mentions.classes[:, 0]
        right = {"late count": (logits.argmax(-1) == count).float().mean().item()}
        return F.cross_entropy(logits, count, logits.new_tensor(COUNT_WEIGHTS)), right

    def look(self, batch: Sample) -> tuple[Tensor, dict[str, float]]:
        """Loss of looking where the words of the questions point, in the last forward pass."""
        if self.looking is None or batch.looks is None:
            raise ValueError(f"attention is not taught to {self.architecture.name}")
        return self.looking.loss(batch.mentions, batch.looks, len(self.words.prefix))

    def align(self, visual: Tensor, placed: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of visual tokens against the words for what they show and where, by cosine."""
        table = F.normalize(self.model.get_input_embeddings().weight, dim=-1)
        seen, put = F.normalize(visual, dim=-1), F.normalize(placed, dim=-1)
        terms = []
        for name, group in self.groups.items():
            valid = targets[name] != IGNORE
            if valid.any():
                told = put if name in PLACES else seen
                terms.append(F.cross_entropy(16 * told[valid] @ table[group.to(table.device)].T, targets[name][valid]))
        return torch.stack(terms).mean()


@torch.no_grad()
def look(seer: TowerWithHeads, scenes: list[Scene], half: bool = False) -> Tensor:
    """Features of whole pictures, (B, 576, D); with ``half``, computed in bfloat16."""
    device = next(seer.parameters()).device
    rows = torch.arange(IMAGE_TOKENS, device=device).expand(len(scenes), -1)
    with halved(device, half):
        return seer.features(to_tensor([np.asarray(render(s)) for s in scenes]).to(device), rows)[0].float()
