# SPDX-License-Identifier: Apache-2.0
"""Normalisation: one offset and one scale per band, fitted once on the whole source image.

Fitted on a window, the same field would look different in every crop, so a window never takes part. Scenes
use the 1st and 99th percentile and keep the values beyond; patch files use minimum and maximum, as the
published models do. Invalid pixels are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np

from spectralgpt.data.raster import Bools, Pixels
from spectralgpt.data.resample import Floats
from spectralgpt.errors import UserError

Method = Literal["percentile", "minmax"]

_PERCENTILES = (1.0, 99.0)
_SAMPLES = 1 << 21
_NO_VALUES = (math.nan, math.nan)


@dataclass(frozen=True)
class Normalization:
    """Per band `(x - offset) * scale`; travels with models and outputs, to be repeated and undone."""

    method: str
    band_names: tuple[str, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def apply(self, pixels: Pixels) -> Floats:
        """Raw `(C, H, W)` of any type to normalised float32."""
        offset, scale = self.arrays()
        normalised: Floats = (pixels.astype(np.float32) - offset) * scale
        return normalised

    def invert(self, pixels: Floats) -> Floats:
        """Normalised `(C, H, W)` to raw units."""
        offset, scale = self.arrays()
        raw: Floats = pixels / scale + offset
        return raw

    def arrays(self) -> tuple[Floats, Floats]:
        """Offset and scale as `(C, 1, 1)`."""
        offset, scale = np.array([self.offset, self.scale], np.float32)[:, :, None, None]
        return offset, scale

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Normalization:
        """The inverse of `to_dict`."""
        names, offset, scale = (tuple(values[key]) for key in ("band_names", "offset", "scale"))
        return cls(values["method"], names, offset, scale)


class Image(Protocol):
    """What fitting needs of a `Scene`."""

    name: str
    band_names: tuple[str, ...]
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def strips(self) -> Iterator[tuple[int, Pixels, Bools | None]]:
        """First row, pixels `(C, h, W)` and validity of one strip after another."""


def fit(image: Image, method: Method) -> Normalization:
    """The normalisation of an image, in one pass over it.

    Raises:
        UserError: a band has no valid pixel.
    """
    return Survey(image, method).normalization


class Survey:
    """One pass over a whole image: its normalisation, and the share of its values that are valid.

    Integers of up to 16 bits are counted value by value, so their percentiles are exact. Floating-point bands
    beyond two million pixels give theirs from a regular grid of pixels over the whole image; extremes are
    always exact.
    """

    def __init__(self, image: Image, method: Method) -> None:
        """Reads the image.

        Raises:
            UserError: a band has no valid pixel.
        """
        gatherers = [_gatherer(image, method) for _ in image.band_names]
        num_valid = 0
        for _, pixels, valid in image.strips():
            num_valid += pixels.size if valid is None else int(valid.sum())
            for i, gatherer in enumerate(gatherers):
                gatherer.add(pixels[i], None if valid is None else valid[i])
        ranges = [gatherer.range() for gatherer in gatherers]
        empty = [name for name, (low, _) in zip(image.band_names, ranges, strict=True) if math.isnan(low)]
        if empty:
            raise UserError(f"{image.name}: expected valid pixels in every band, got only no-data in {' '.join(empty)}")
        self.valid_fraction = num_valid / (len(gatherers) * image.shape[0] * image.shape[1])
        self.normalization = Normalization(
            method=method,
            band_names=image.band_names,
            offset=tuple(low for low, _ in ranges),
            scale=tuple(1 / (high - low) if high > low else 1.0 for low, high in ranges),
        )


class _Extremes:
    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def add(self, pixels: Pixels, valid: Bools | None) -> None:
        values = pixels if valid is None else pixels[valid]
        if values.size:
            self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))

    def range(self) -> tuple[float, float]:
        return (self._low, self._high) if self._low <= self._high else _NO_VALUES


class _Histogram:
    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._lowest = int(np.iinfo(dtype).min)
        self._counts = np.zeros(1 << (8 * dtype.itemsize), np.int64)

    def add(self, pixels: Pixels, valid: Bools | None) -> None:
        values = pixels.ravel() if valid is None else pixels[valid]
        self._counts += np.bincount(values.astype(np.int64) - self._lowest, minlength=self._counts.size)

    def range(self) -> tuple[float, float]:
        below = np.cumsum(self._counts)
        last = int(below[-1]) - 1
        if last < 0:
            return _NO_VALUES
        # The definition of numpy.percentile: linear between the two values around the fractional rank.
        ranks = [last * percent / 100 for percent in _PERCENTILES]
        around = np.searchsorted(below, [[math.floor(rank), math.ceil(rank)] for rank in ranks], side="right")
        low, high = (float(a + (b - a) * (rank % 1)) + self._lowest for (a, b), rank in zip(around, ranks, strict=True))
        return low, high


class _Samples:
    def __init__(self, shape: tuple[int, int]) -> None:
        self._step = math.ceil(math.sqrt(shape[0] * shape[1] / _SAMPLES))
        self._kept: list[Floats] = []

    def add(self, pixels: Pixels, valid: Bools | None) -> None:
        some = np.s_[:: self._step, :: self._step]
        self._kept.append(pixels[some].ravel() if valid is None else pixels[some][valid[some]])

    def range(self) -> tuple[float, float]:
        values = np.concatenate(self._kept)
        if not values.size:
            return _NO_VALUES
        low, high = np.percentile(values.astype(np.float64), _PERCENTILES)
        return float(low), float(high)


def _gatherer(image: Image, method: Method) -> _Extremes | _Histogram | _Samples:
    if method == "minmax":
        return _Extremes()
    return _Histogram(image.dtype) if image.dtype.kind in "iu" else _Samples(image.shape)
