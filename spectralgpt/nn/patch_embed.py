# SPDX-License-Identifier: Apache-2.0
"""Cubes of t bands x p x p pixels to tokens of D channels.

A convolution whose stride is its kernel is one matrix product over cut cubes. In training only the visible
cubes are read (`ops.gather_patchify3d`), so nine tenths of the image never cost anything; whole images are
cut with aten ops, which export.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from spectralgpt import ops


class PatchEmbed(nn.Module):
    """Linear map of cubes, the same for every spectral group.

    `proj.weight` is (D, P) with P = t * p * p values ordered band, row, column: the published Conv3d kernel, flattened.
    """

    def __init__(self, patch_size: tuple[int, int, int], embed_dim: int) -> None:
        """Draws Xavier-uniform weights; the bias keeps torch's uniform default, as published."""
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(math.prod(patch_size), embed_dim)
        nn.init.xavier_uniform_(self.proj.weight)

    def forward(self, image: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Embeds the cubes at `ids_keep`, or all of them.

        Args:
            image: (B, C, H, W), floating.
            ids_keep: (B, K) int64 token indices.

        Returns:
            (B, K, D), or (B, L, D) without `ids_keep`.
        """
        if ids_keep is None:
            cubes = cut_cubes(image, self.patch_size)
        else:
            cubes = ops.gather_patchify3d(image, ids_keep, self.patch_size)
        tokens: Tensor = self.proj(cubes)
        return tokens


def cut_cubes(image: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """(B, C, H, W) -> (B, L, P) in aten ops alone: `ops.patchify3d` for graphs that must run without this package."""
    t, p, q = patch_size
    batch, bands, height, width = image.shape
    grid = image.reshape(batch, bands // t, t, height // p, p, width // q, q)
    return grid.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
