# SPDX-License-Identifier: Apache-2.0
"""Layers that models are built from. They know tensors and sizes, no data set and no training."""

from spectralgpt.nn.block import NORM_EPSILON, Attention, Block, DropPath, Linear, Mlp
from spectralgpt.nn.patch_embed import PatchEmbed, cut_cubes
from spectralgpt.nn.positions import Grid, PositionEmbedding, resample_spatial, resample_spectral

__all__ = [
    "NORM_EPSILON",
    "Attention",
    "Block",
    "DropPath",
    "Grid",
    "Linear",
    "Mlp",
    "PatchEmbed",
    "PositionEmbedding",
    "cut_cubes",
    "resample_spatial",
    "resample_spectral",
]
