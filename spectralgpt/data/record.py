# SPDX-License-Identifier: Apache-2.0
"""A `Record`: one image as its files hold it, with its labels and what is known about the whole of it.

Original files and shards give the same records to the bit; everything after (normalisation, crops, batches)
starts from here. Pixels keep the file's own type, so that 16-bit integers travel as 16-bit integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralgpt.data.raster import Bools, Pixels

IGNORE = 255
"""Class index of mask pixels without a label."""


@dataclass(frozen=True)
class Record:
    """One image of a data set.

    Attributes:
        name: its path below the root or its id; unique in the data set.
        pixels: `(C, H, W)`, or `(T, C, H, W)` for several dates; invalid ones are 0.
        valid: where pixels hold data, the same shape; None where all do.
        low: smallest valid value of each band of the whole source image, `(C,)` or `(T, C)`.
        high: largest valid value, likewise.
        label: class index, or 0 and 1 for each class `(N,)`, or None.
        mask: class index of each pixel `(H, W)`, `IGNORE` where there is none, or None.
        crs: coordinate system as WKT or an authority code, or None.
        transform: a, b, c, d, e, f with x = a * column + b * row + c and y = d * column + e * row + f, or None.
    """

    name: str
    pixels: Pixels
    valid: Bools | None
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    label: int | NDArray[np.uint8] | None = None
    mask: NDArray[np.uint8] | None = None
    crs: str | None = None
    transform: tuple[float, float, float, float, float, float] | None = None


def extremes(pixels: Pixels, valid: Bools | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest valid value over the last two axes; 0 where a band has no valid pixel."""
    if valid is None:
        return pixels.min(axis=(-2, -1)).astype(np.float64), pixels.max(axis=(-2, -1)).astype(np.float64)
    any_valid = valid.any(axis=(-2, -1))
    values = pixels.astype(np.float64)
    low = np.where(valid, values, np.inf).min(axis=(-2, -1))
    high = np.where(valid, values, -np.inf).max(axis=(-2, -1))
    return np.where(any_valid, low, 0.0), np.where(any_valid, high, 0.0)
