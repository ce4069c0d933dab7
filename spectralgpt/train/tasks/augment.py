# SPDX-License-Identifier: Apache-2.0
"""Chance on batches of labelled images, as a function of (seed, step, sample or place) and of no generator's state.

So a resumed run needs nothing to draw the same, whatever dropout drew in between, and a batch that ran out of memory
is mixed again in the same way. Erasing depends on the sample alone; mixing pairs the samples of a process's batch, and
so is the same at an equal number of processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectralgpt import ops
from spectralgpt.data.mixing import MixConfig, mix

_AREA = (0.02, 1 / 3)
_RATIO = (0.3, 1 / 0.3)


def mixed(image: Tensor, target: Tensor, config: MixConfig, seed: int, step: int, place: int) -> tuple[Tensor, Tensor]:
    """MixUp or CutMix of a batch.

    Args:
        image: (B, C, H, W).
        target: (B, N) label shares.
        config: how strongly.
        seed: of the run.
        step: number of the optimizer step.
        place: of the batch among all of the step and of all processes.
    """
    word = ops.philox(seed, torch.tensor([place]), step, ops.Purpose.MIX, 1)
    return mix(image, target, target.shape[1], config, torch.Generator().manual_seed(int(word)))


def erased(image: Tensor, sample_id: Tensor, share: float, seed: int, step: Tensor) -> Tensor:
    """Fills a random box, 2 to 33 % of the area, with each band's mean, in `share` of the images.

    Zhong et al. 2020, "Random Erasing Data Augmentation".

    Args:
        image: (B, C, H, W).
        sample_id: (B,) int64.
        share: of the images.
        seed: of the run.
        step: number of the optimizer step, 0-d int64.
    """
    height, width = image.shape[-2:]
    words = ops.philox(seed, sample_id, step, ops.Purpose.ERASE, 5).double() / 2**32
    chance, area, ratio, down, right = words[:, :, None, None].unbind(1)
    area = (_AREA[0] + area * (_AREA[1] - _AREA[0])) * (height * width)
    ratio = _RATIO[0] * (_RATIO[1] / _RATIO[0]) ** ratio
    rows = (area * ratio).sqrt().round().clamp(1, height)
    columns = (area / ratio).sqrt().round().clamp(1, width)
    top, left = (down * (height - rows + 1)).floor(), (right * (width - columns + 1)).floor()
    y = torch.arange(height, device=image.device)[None, :, None]
    x = torch.arange(width, device=image.device)[None, None, :]
    inside = (chance < share) & (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
    return torch.where(inside[:, None], image.mean((2, 3), keepdim=True), image)
