"""Augmentation in batch, on the device, from one seed per step and rank: a resumed training draws what it would have.

Crops and flips belong to the images (the same at every world size); RandAugment, mixup and CutMix are torchvision's
and draw once per micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from vitscale.config.training import Recipe

OPERATIONS = 2
"""RandAugment's operations per draw (Cubuk et al. 2019)."""


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one step of one rank: dropout, drop path, mixup. Stream 3 is theirs."""
    state = np.random.SeedSequence((seed, step, rank, 3)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] & 0x7FFF_FFFF_FFFF_FFFF))


def crop(pixels: Tensor, shifts: Tensor) -> Tensor:
    """Shift each image and fill what comes in with zeros.

    Args:
        pixels: uint8 [n, channels, height, width].
        shifts: int64 [n, 2], rows and columns to move down and right; negative is up and left.
    """
    _, _, height, width = pixels.shape
    rows = torch.arange(height, device=pixels.device)[None, :] - shifts[:, :1]
    columns = torch.arange(width, device=pixels.device)[None, :] - shifts[:, 1:]
    there = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    image = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    taken = pixels.permute(0, 2, 3, 1)[
        image, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    ]
    return taken.permute(0, 3, 1, 2) * there


def rand_augment(magnitude: int) -> Callable[[Tensor], Tensor] | None:
    """RandAugment for uint8 [n, 3, height, width], or None where it is off."""
    return v2.RandAugment(num_ops=OPERATIONS, magnitude=magnitude) if magnitude else None


def mix(recipe: Recipe, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mixup or CutMix of a micro-batch: images [n, 3, h, w] and labels [n] become images and targets [n, classes]."""
    choices: list[torch.nn.Module] = []
    if recipe.mixup:
        choices.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
    if recipe.cutmix:
        choices.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
    if not choices:
        return None
    return choices[0] if len(choices) == 1 else v2.RandomChoice(choices)


def criterion(recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy of logits [n, classes] against labels [n] or targets [n, classes], smoothed as asked."""
    smoothing = recipe.label_smoothing

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), target, label_smoothing=smoothing)

    return loss
