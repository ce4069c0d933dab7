# SPDX-License-Identifier: Apache-2.0
"""Bilinear resampling of one band onto the common grid, in NumPy.

Two promises decide the form. A window equals the same part of the whole image bit for bit: every position is
computed from the absolute pixel index, and no sum depends on what else is read. And invalid pixels never mix
in: a grid pixel is valid where it lies inside a valid band pixel, and its value is the bilinear mean over the
valid ones of the four nearest, their weights scaled up to one. Pixels outside the band are invalid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Axis:
    """Rows or columns of a band under the grid: grid position x lies at `start + step * x` band pixels."""

    start: float
    step: float
    size: int

    def is_identity(self, size: int) -> bool:
        """Whether the band's own pixels are the grid's."""
        return self.size == size and abs(self.start) < 1e-3 and abs(self.step - 1) * size < 1e-3

    def taps(self, first: int, count: int) -> Taps:
        """What grid pixels `first` to `first + count` read."""
        # Geotransforms in degrees carry rounding noise; a millionth of a pixel must not turn a copy into a
        # blend.
        position = np.round(self.start + self.step * (np.arange(first, first + count) + 0.5), 6)
        low = np.floor(position - 0.5)
        weight = np.round(position - 0.5 - low, 6).astype(np.float32)
        last = self.size - 1
        return Taps(
            low=np.clip(low, 0, last).astype(np.int64),
            high=np.clip(low + (weight > 0), 0, last).astype(np.int64),
            nearest=np.clip(np.floor(position), 0, last).astype(np.int64),
            weight=weight,
            inside=(position >= 0) & (position < self.size),
        )


@dataclass(frozen=True)
class Taps:
    """Per grid pixel of one axis: the two band pixels it blends, the weight of `high`, the one it lies in."""

    low: Indices
    high: Indices
    nearest: Indices
    weight: Floats
    inside: Bools

    @property
    def span(self) -> tuple[int, int]:
        """First band pixel read and the one after the last."""
        return int(min(self.low.min(), self.high.min())), int(max(self.low.max(), self.high.max())) + 1

    def shifted(self, by: int) -> Taps:
        """The same taps into a band read from pixel `by` on."""
        return Taps(self.low - by, self.high - by, self.nearest - by, self.weight, self.inside)


def resample(pixels: Floats, valid: Bools, rows: Taps, columns: Taps) -> tuple[Floats, Bools]:
    """Band pixels `(h, w)` and their validity on the grid pixels of the taps; invalid grid pixels are 0."""
    if valid.all():
        values = _bilinear(pixels, rows, columns)
    else:
        # Both sums use the form a + w * (b - a): where all four pixels are valid the second is exactly 1.
        values = _bilinear(np.where(valid, pixels, np.float32(0)), rows, columns)
        weights = _bilinear(valid.astype(np.float32), rows, columns)
        values /= np.where(weights > 0, weights, np.float32(1))
    ok = valid[rows.nearest[:, None], columns.nearest] & rows.inside[:, None] & columns.inside
    if not ok.all():
        values[~ok] = 0
    return values, ok


def _bilinear(pixels: Floats, rows: Taps, columns: Taps) -> Floats:
    top, bottom = pixels[rows.low], pixels[rows.high]
    lines = top + rows.weight[:, None] * (bottom - top)
    left, right = lines[:, columns.low], lines[:, columns.high]
    blended: Floats = left + columns.weight * (right - left)
    return blended
