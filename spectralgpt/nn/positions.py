# SPDX-License-Identifier: Apache-2.0
"""Learned positions of tokens in space and along the spectrum.

Separable (as published): token (g, y, x) gets spatial[y, x] + spectral[g]; the "flat" form has one row per
token. Positions move to another image size by bicubic interpolation in space, and to other bands by linear
interpolation along *wavelength*: what a row learnt belongs to a place in the spectrum, not to an index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int, int]
"""Tokens along spectrum, height and width: (S, h, w)."""


class PositionEmbedding(nn.Module):
    """A learned vector for each place of a (S, h, w) grid of tokens.

    `spatial` is (h*w, D) and `spectral` (S, D); the flat form has `flat` (S*h*w, D) instead.
    """

    def __init__(self, grid: Grid, dim: int, *, flat: bool = False) -> None:
        """Draws normal values of standard deviation 0.02 (truncated far out), as published."""
        super().__init__()
        self.grid = grid
        self.is_flat = flat
        groups, height, width = grid
        if flat:
            self.flat = _learned(math.prod(grid), dim)
        else:
            self.spatial = _learned(height * width, dim)
            self.spectral = _learned(groups, dim)

    def forward(self, grid: Grid, ids_keep: Tensor | None = None) -> Tensor:
        """Positions of a grid, resampled on the fly (differentiably) where its height or width is another.

        Args:
            grid: (S, h, w) of the image at hand; S must be the module's own.
            ids_keep: (B, K) int64 token indices; without them all tokens, in order.

        Returns:
            (L, D), or (B, K, D) with `ids_keep`.
        """
        if self.is_flat:
            table = resample_spatial(self.flat, self.grid[1:], grid[1:])
        else:
            spatial = resample_spatial(self.spatial, self.grid[1:], grid[1:])
            table = (self.spectral[:, None] + spatial[None]).flatten(0, 1)
        return table if ids_keep is None else F.embedding(ids_keep, table)

    @torch.no_grad()
    def resize(self, height_width: tuple[int, int]) -> None:
        """Resamples the parameters for good; what `forward` gave on the fly for this grid stays the same."""
        if tuple(height_width) == self.grid[1:]:
            return
        name = "flat" if self.is_flat else "spatial"
        self._replace(name, resample_spatial(getattr(self, name), self.grid[1:], height_width))
        self.grid = (self.grid[0], *height_width)

    @torch.no_grad()
    def move_spectrum(self, centres: Sequence[float], new_centres: Sequence[float]) -> None:
        """Moves the spectral part from groups at `centres` to groups at `new_centres` (micrometres) for good."""
        if self.is_flat:
            dim = self.flat.shape[1]
            moved = resample_spectral(self.flat.reshape(self.grid[0], -1), centres, new_centres)
            self._replace("flat", moved.reshape(-1, dim))
        else:
            self._replace("spectral", resample_spectral(self.spectral, centres, new_centres))
        self.grid = (len(new_centres), *self.grid[1:])

    def _replace(self, name: str, values: Tensor) -> None:
        requires_grad = getattr(self, name).requires_grad
        setattr(self, name, nn.Parameter(values.detach().clone(), requires_grad=requires_grad))


def resample_spatial(positions: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Bicubic resampling (half-pixel centres, no antialiasing) of rows that lie on a grid.

    Args:
        positions: (G*h*w, D): G grids of rows, one after another.
        size: (h, w).
        new_size: (h', w').

    Returns:
        (G*h'*w', D); `positions` itself where the sizes agree.
    """
    if not _is_open(new_size) and tuple(size) == tuple(new_size):
        return positions
    planes = positions.reshape(-1, *size, positions.shape[1]).permute(0, 3, 1, 2)
    resized = F.interpolate(planes, size=tuple(new_size), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 2)


def resample_spectral(positions: Tensor, centres: Sequence[float], new_centres: Sequence[float]) -> Tensor:
    """Linear interpolation along wavelength, the end rows held beyond the ends.

    Args:
        positions: (S, D), one row per spectral group.
        centres: S centre wavelengths, in any order.
        new_centres: S' centre wavelengths.

    Returns:
        (S', D).
    """
    known, order = torch.tensor(list(centres), dtype=torch.float64).sort(stable=True)
    wanted = torch.tensor(list(new_centres), dtype=torch.float64).clamp(known[0], known[-1])
    right = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    left = (right - 1).clamp(min=0)
    gap = known[right] - known[left]
    weight = torch.where(gap > 0, (wanted - known[left]) / gap.clamp(min=1e-12), 0.0)
    weight = weight.to(positions)[:, None]
    rows = positions[order.to(positions.device)]
    return torch.lerp(rows[left.to(rows.device)], rows[right.to(rows.device)], weight)


def _is_open(size: tuple[int, int]) -> bool:
    """Whether an export leaves a size open: comparing it would close it, and resampling to the same size is exact."""
    return any(isinstance(length, torch.SymInt) for length in size) and torch.compiler.is_exporting()


def _learned(rows: int, dim: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(rows, dim), std=0.02))
