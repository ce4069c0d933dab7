# SPDX-License-Identifier: Apache-2.0
"""Normalisation: one offset and one scale per band, that of the whole source image or that of a whole data set.

Fitted on a window, the same field would look different in every crop, so a window never takes part. A `Normalizer` is
the rule, the same in pretraining, fine-tuning and prediction; a `Normalization` is what it gives for one image. Scenes
use the 1st and 99th percentile and keep the values beyond; patch files use minimum and maximum, as the published
models do. Invalid pixels are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spectralgpt.data.raster import Bools, Pixels
from spectralgpt.data.record import Record
from spectralgpt.data.resample import Floats
from spectralgpt.data.statistics import SAMPLES, Counts, Samples, load_mean_std
from spectralgpt.errors import UserError

METHODS = ("minmax", "percentile", "fixed", "none")

_PERCENTILES = (1.0, 99.0)
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


@dataclass(frozen=True)
class Normalizer:
    """A rule that gives each image its offset and scale.

    Attributes:
        method: "minmax" and "percentile" (1st to 99th) of the image itself, "fixed" numbers for all images, or "none".
        band_names: which bands `offset` and `scale` belong to; they are chosen by name.
        offset: of the fixed numbers.
        scale: likewise.
    """

    method: str
    band_names: tuple[str, ...] = ()
    offset: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Checks that fixed numbers are there, one for each band."""
        if self.method not in METHODS:
            raise UserError(f"normalisation: expected one of {', '.join(METHODS)}, got {self.method!r}")
        numbers = [] if self.offset is None or self.scale is None else [len(self.offset), len(self.scale)]
        if self.method == "fixed" and numbers != [len(self.band_names)] * 2:
            raise UserError(f"normalisation: expected an offset and a scale for each of {len(self.band_names)} bands")

    @classmethod
    def from_file(cls, path: str | Path) -> Normalizer:
        """Mean 0 and deviation 1 by the statistics that `spectralgpt prepare stats` wrote.

        Raises:
            UserError: no such file.
        """
        names, mean, std = load_mean_std(path)
        return cls("fixed", names, mean, tuple(1 / value if value > 0 else 1.0 for value in std))

    def select(self, band_names: Sequence[str]) -> Normalizer:
        """The rule for these bands in this order.

        Raises:
            UserError: there are no fixed numbers for one of them.
        """
        if self.offset is None or self.scale is None:
            return replace(self, band_names=tuple(band_names))
        missing = [name for name in band_names if name not in self.band_names]
        if missing:
            raise UserError(
                f"normalisation: expected statistics of {' '.join(missing)}, there are those of "
                f"{' '.join(self.band_names)}; run `spectralgpt prepare stats` with these bands"
            )
        places = [self.band_names.index(name) for name in band_names]
        offset, scale = (tuple(values[place] for place in places) for values in (self.offset, self.scale))
        return Normalizer(self.method, tuple(band_names), offset, scale)

    def of_record(self, record: Record) -> tuple[Floats, Floats]:
        """Offset and scale of each band of a record, float32 `(C,)` or `(T, C)`; a constant band has scale 1.

        Raises:
            UserError: the fixed numbers are for another number of bands.
        """
        shape = record.pixels.shape[:-2]
        if self.method == "minmax":
            return _offset_scale(record.low, record.high)
        if self.method == "percentile":
            return _offset_scale(*_percentiles(record))
        if self.offset is None or self.scale is None:
            return np.zeros(shape, np.float32), np.ones(shape, np.float32)
        if len(self.offset) != shape[-1]:
            raise UserError(f"{record.name}: expected {len(self.offset)} bands as in the statistics, got {shape[-1]}")
        offset, scale = (np.broadcast_to(np.array(values, np.float32), shape) for values in (self.offset, self.scale))
        return offset, scale

    def of_scene(self, image: Image) -> Normalization:
        """Offset and scale of each band of a scene, in one pass over it.

        Raises:
            UserError: a band has no valid pixel, or no fixed numbers.
        """
        return Survey(image, self).normalization

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Normalizer:
        """The inverse of `to_dict`."""
        offset, scale = (None if values[key] is None else tuple(values[key]) for key in ("offset", "scale"))
        return cls(values["method"], tuple(values["band_names"]), offset, scale)


def fit(image: Image, method: str) -> Normalization:
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

    def __init__(self, image: Image, method: str | Normalizer) -> None:
        """Reads the image.

        Raises:
            UserError: a band has no valid pixel, or no fixed numbers.
        """
        normalizer = method if isinstance(method, Normalizer) else Normalizer(method)
        method = normalizer.method
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
        offset = tuple(low for low, _ in ranges)
        scale = tuple(1 / (high - low) if high > low else 1.0 for low, high in ranges)
        if method in ("fixed", "none"):
            fixed, ones = normalizer.select(image.band_names), (1.0,) * len(ranges)
            offset, scale = fixed.offset or (0.0,) * len(ranges), fixed.scale or ones
        self.normalization = Normalization(method, image.band_names, offset, scale)


def _offset_scale(low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[Floats, Floats]:
    extent = high - low
    scale = np.divide(1, extent, out=np.ones_like(extent), where=extent > 0)
    return low.astype(np.float32), scale.astype(np.float32)


def _percentiles(record: Record) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """1st and 99th percentile of each band; 0 where it has no valid pixel."""
    pixels = record.pixels.astype(np.float64)
    if record.valid is None:
        low, high = np.percentile(pixels, _PERCENTILES, axis=(-2, -1))
        return low, high
    low, high = np.zeros((2, *pixels.shape[:-2]))
    for band in np.ndindex(low.shape):
        values = pixels[band][record.valid[band]]
        if values.size:
            low[band], high[band] = np.percentile(values, _PERCENTILES)
    return low, high


class _Extremes:
    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def add(self, pixels: Pixels, valid: Bools | None) -> None:
        values = pixels if valid is None else pixels[valid]
        if values.size:
            self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))

    def range(self) -> tuple[float, float]:
        return (self._low, self._high) if self._low <= self._high else _NO_VALUES


class _Percentiles:
    """Adapts `statistics` to what a survey asks for."""

    def __init__(self, values: Counts | Samples) -> None:
        self._values = values

    def add(self, pixels: Pixels, valid: Bools | None) -> None:
        self._values.add(pixels, valid)

    def range(self) -> tuple[float, float]:
        if not self._values.count:
            return _NO_VALUES
        low, high = self._values.percentiles(_PERCENTILES)
        return low, high


def _gatherer(image: Image, method: str) -> _Extremes | _Percentiles:
    if method != "percentile":
        return _Extremes()
    if image.dtype.kind in "iu":
        return _Percentiles(Counts(image.dtype))
    return _Percentiles(Samples(math.ceil(math.sqrt(image.shape[0] * image.shape[1] / SAMPLES))))
