# SPDX-License-Identifier: Apache-2.0
"""Positions that begin as geometry, for training from scratch in minutes.

The published start, small normal values, carries no notion of near and far: attention has to discover the grid
first, which takes thousands of steps in which a reconstruction is no better than a mean. Sines and cosines of row
and column give neighbours similar vectors from the first step; they are learnt from there like any other weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.nn import PositionEmbedding

_LONGEST = 20.0
"""Longest period over the shortest: with the usual 10,000 most channels would be flat over a dozen tokens."""


@torch.no_grad()
def start_from_geometry(autoencoder: Autoencoder) -> None:
    """Sets spatial positions to sines and cosines, spectral ones and the mask token to normal values of their size.

    Args:
        autoencoder: with separable positions; flat ones stay as they are.
    """
    spread = math.sqrt(0.5)  # of a sine
    for module in autoencoder.modules():
        if isinstance(module, PositionEmbedding) and not module.is_flat:
            _, height, width = module.grid
            module.spatial.copy_(sines_and_cosines(height, width, module.spatial.shape[1]))
            module.spectral.normal_(std=spread)
    autoencoder.decoder.mask_token.normal_(std=spread)


def sines_and_cosines(height: int, width: int, dim: int) -> Tensor:
    """(height * width, dim): a quarter of the channels each for sine and cosine of the row, then of the column.

    Channels beyond a multiple of four are zero.
    """
    frequencies = _LONGEST ** -torch.linspace(0, 1, dim // 4)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (rows, columns)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.nn.functional.pad(table, (0, dim - table.shape[1]))
