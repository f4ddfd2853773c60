"""How a CLIP tower starts: looking at neighbours, at whitened pixels, and knowing where every patch is.

Contract: each function changes the weights of an untrained (or half-trained) tower in place and draws nothing but what
it names.
"""

import math

import torch
from torch import Tensor
from transformers import CLIPVisionModel

from adaptprune.tabletop.vocabulary import GRID, PATCH_SIZE
from pocket.pixels import whitening

POSITION_SCALE, CONTENT_SCALE = 2.0, 0.35  # an edge is far above the mean and must not drown its position


@torch.no_grad()
def look_at_neighbours(tower: CLIPVisionModel) -> None:
    """Start attention local: each head of the first layers looks at one neighbour offset.

    The first ``head_dim`` channels carry sines and cosines of the position and no picture content; a head whose key
    copies them and whose query rotates them by an offset attends to the patch at that offset. A tower that starts like
    a small convolution learns many times faster than one that has to find out what is next to what.
    """
    reserved = tower.config.hidden_size // tower.config.num_attention_heads
    frequencies = math.pi * torch.tensor([0.9, 0.62, 0.4, 0.24, 0.1])
    if reserved != 4 * len(frequencies):
        raise ValueError(f"the local start needs heads of {4 * len(frequencies)} channels, got {reserved}")
    axis = torch.arange(GRID, dtype=torch.float32)
    phase = axis[:, None] * frequencies  # (24, 5)
    wave = torch.stack([phase.cos(), phase.sin()], dim=-1).flatten(1)  # (24, 10), pairs of (cos, sin)
    vertical, horizontal = wave.repeat_interleave(GRID, 0), wave.repeat(GRID, 1)
    table = tower.embeddings.position_embedding.weight
    table.normal_(std=0.01)
    table[1:, :reserved] = POSITION_SCALE * torch.cat([vertical, horizontal], dim=1)
    near = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    wide = [(-2, 0), (2, 0), (0, -2), (0, 2), (-1, -1), (-1, 1), (1, -1), (1, 1)]
    far = [(-3, 0), (3, 0), (0, -3), (0, 3), (-2, -2), (-2, 2), (2, -2), (2, 2)]
    for layer, offsets in zip(tower.encoder.layers, (near, wide, far), strict=False):
        attention = layer.self_attn
        for head, offset in enumerate(offsets):
            rows = slice(head * reserved, (head + 1) * reserved)
            attention.q_proj.weight[rows].normal_(std=0.01)
            attention.k_proj.weight[rows].normal_(std=0.01)
            attention.q_proj.weight[rows, :reserved] = 1.25 * _rotation(frequencies, offset)
            attention.k_proj.weight[rows, :reserved] = 1.25 * torch.eye(reserved)


@torch.no_grad()
def whiten(tower: CLIPVisionModel) -> None:
    """Start the patch embedding as a whitening of patches: their principal components, each with the same variance.

    The mean is taken off through the position table, because the embedding has no bias.
    """
    reserved = tower.config.hidden_size // tower.config.num_attention_heads
    rows, mean = whitening(PATCH_SIZE, tower.config.hidden_size - reserved, CONTENT_SCALE, centred=True)
    weight = tower.embeddings.patch_embedding.weight
    weight[:reserved] = 0
    weight[reserved:] = rows.view(-1, *weight.shape[1:])
    tower.embeddings.position_embedding.weight[1:, reserved:] -= rows @ mean


@torch.no_grad()
def add_ramps(tower: CLIPVisionModel) -> None:
    """Give the two channels of least picture content to the row and the column, so that features can tell where."""
    ramp = 1.5 * torch.linspace(-1, 1, GRID)
    tower.embeddings.patch_embedding.weight[-2:] = 0
    tower.embeddings.position_embedding.weight[1:, -2] = ramp.repeat_interleave(GRID)
    tower.embeddings.position_embedding.weight[1:, -1] = ramp.repeat(GRID)


def _rotation(frequencies: Tensor, offset: tuple[int, int]) -> Tensor:
    """Matrix that turns the position code at (row, column) into the code at (row, column) + offset."""
    blocks = []
    for shift in offset:
        for frequency in frequencies.tolist():
            c, s = math.cos(frequency * shift), math.sin(frequency * shift)
            blocks.append(torch.tensor([[c, -s], [s, c]]))
    return torch.block_diag(*blocks)
