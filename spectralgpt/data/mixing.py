# SPDX-License-Identifier: Apache-2.0
"""MixUp and CutMix: each image of a batch with another one of it, and labels in the same shares.

The only chance in the data that is no function of the sample, since it pairs samples: it comes from a generator that
the trainer makes anew for every batch, from seed, step and place. Arithmetic follows Zhang et al. 2018 and Yun et al.
2019; torchvision's transforms take no generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spectralgpt.errors import UserError


@dataclass(frozen=True)
class MixConfig:
    """How strongly to mix.

    Attributes:
        mixup: parameter of the Beta distribution of MixUp's shares; 0 turns it off.
        cutmix: likewise of CutMix.
        probability: share of the batches that are mixed; where both are on, each gets half of them.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        """Checks what types alone cannot say."""
        if min(self.mixup, self.cutmix) < 0 or not 0 <= self.probability <= 1:
            raise UserError(f"mix: expected numbers from 0 and a probability of at most 1, got {self}")


def mix(
    image: Tensor, label: Tensor, num_classes: int, config: MixConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mixes a batch.

    Args:
        image: (B, C, H, W).
        label: (B,) class indices or (B, num_classes) 0 and 1.
        num_classes: of single labels.
        config: how strongly.
        generator: on the CPU; gives all chance.

    Returns:
        The images, and label shares (B, num_classes) float32.
    """
    target = (F.one_hot(label, num_classes) if label.dim() == 1 else label).float()
    active, cut, seed = torch.rand(2, generator=generator), config.cutmix > 0, _seed(generator)
    chance, choice = active.tolist()
    if chance >= config.probability or not (config.mixup or cut):
        return image, target
    draw = np.random.default_rng(seed)
    order = torch.from_numpy(draw.permutation(len(image))).to(image.device)
    if cut and not (config.mixup and choice < 0.5):
        image, share = _cut(image, image[order], draw.beta(config.cutmix, config.cutmix), draw)
    else:
        share = draw.beta(config.mixup, config.mixup)
        image = torch.lerp(image[order], image, share)
    return image, torch.lerp(target[order], target, share)


def _cut(image: Tensor, other: Tensor, share: float, draw: np.random.Generator) -> tuple[Tensor, float]:
    """Puts a box of the other image into each, about 1 - share of its area, and gives the share that is left."""
    height, width = image.shape[-2:]
    rows, columns = (round(length * (1 - share) ** 0.5 / 2) for length in (height, width))
    y, x = int(draw.integers(height)), int(draw.integers(width))
    top, bottom, left, right = max(y - rows, 0), min(y + rows, height), max(x - columns, 0), min(x + columns, width)
    image = image.clone()
    image[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return image, 1 - (bottom - top) * (right - left) / (height * width)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))
