"""Pictures as tensors, and what is found in them before anything is trained.

Contract: ``to_tensor`` normalises pictures as the exported image processors do.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptprune.tabletop.render import render
from adaptprune.tabletop.scenes import scene

# CLIP's, which LLaVA's and Qwen's image processors share
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
WHITEN_FLOOR = 0.02  # share of the mean variance below which components are not amplified further


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """Normalise uint8 pictures (H, W, 3) exactly as the exported image processors do, (B, 3, H, W)."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)


def whitening(patch_size: int, count: int, scale: float, centred: bool, pictures: int = 24) -> tuple[Tensor, Tensor]:
    """Principal components of patches, each scaled to the same variance, (count, 3 * patch_size ** 2), and their mean.

    Raw patches are nearly flat; a random embedding passes on their brightness and hardly anything of their outlines.
    Without ``centred`` the mean is one of the components: for a tower that cannot take it off.
    """
    batch = to_tensor([np.asarray(render(scene("train", index))) for index in range(pictures)])
    patches = F.unfold(batch, patch_size, stride=patch_size).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    spread = torch.cov(patches.T) if centred else patches.T @ patches / len(patches)
    values, vectors = torch.linalg.eigh(spread)
    top = torch.arange(len(values) - 1, len(values) - 1 - count, -1)
    return (scale * vectors[:, top] / (values[top] + WHITEN_FLOOR * values.mean()).sqrt()).T, mean
