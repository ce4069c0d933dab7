# SPDX-License-Identifier: Apache-2.0
"""What the values of each band are like, in one pass over any number of images, in parts that can be merged.

Integers of up to 16 bits are counted value by value, so everything about them is exact. Of other types mean, standard
deviation and extremes are exact, and percentiles come from about two million pixels on a regular grid. Only valid
pixels count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spectralgpt.data import workers
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.raster import Bools, Pixels
from spectralgpt.data.record import Record
from spectralgpt.errors import UserError

PERCENTILES = (1.0, 2.0, 5.0, 25.0, 50.0, 75.0, 95.0, 98.0, 99.0)
SAMPLES = 1 << 21

_FORMAT = "spectralgpt-statistics"
_VERSION = 1
_TASKS = 64


class Counts:
    """How often each value of an integer type of up to 16 bits occurs."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        """Nothing counted yet."""
        self._lowest = int(np.iinfo(dtype).min)
        self._counts = np.zeros(1 << (8 * dtype.itemsize), np.int64)

    def add(self, pixels: Pixels, valid: Bools | None) -> None:
        """Counts the valid pixels of an array."""
        values = pixels.ravel() if valid is None else pixels[valid]
        found = np.bincount(values.astype(np.int64) - self._lowest)
        self._counts[: found.size] += found

    def merge(self, other: Counts) -> None:
        """Adds what another one counted."""
        self._counts += other._counts

    @property
    def count(self) -> int:
        """Number of values."""
        return int(self._counts.sum())

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """As `numpy.percentile` over all values: linear between the two values around the fractional rank."""
        below = np.cumsum(self._counts)
        last = int(below[-1]) - 1
        ranks = [last * percent / 100 for percent in percents]
        around = np.searchsorted(below, [[math.floor(rank), math.ceil(rank)] for rank in ranks], side="right")
        return [float(a + (b - a) * (rank % 1)) + self._lowest for (a, b), rank in zip(around, ranks, strict=True)]

    def moments(self) -> tuple[float, float, float, float]:
        """Mean, standard deviation, smallest and largest value."""
        values = np.flatnonzero(self._counts)
        weights = self._counts[values] / self.count
        mean = float(values @ weights)
        std = math.sqrt(float((values - mean) ** 2 @ weights))
        return mean + self._lowest, std, float(values[0] + self._lowest), float(values[-1] + self._lowest)


class Samples:
    """Values on a regular grid of pixels."""

    def __init__(self, step: int) -> None:
        """Keeps each `step`-th row and column."""
        self._step = step
        self._kept: list[Pixels] = []

    def add(self, pixels: Pixels, valid: Bools | None) -> None:
        """Keeps some valid pixels of an array whose last two axes are rows and columns."""
        some = np.s_[..., :: self._step, :: self._step]
        self._kept.append(pixels[some].flatten() if valid is None else pixels[some][valid[some]])

    def merge(self, other: Samples) -> None:
        """Adds what another one kept."""
        self._kept += other._kept

    @property
    def count(self) -> int:
        """Number of values kept."""
        return sum(map(len, self._kept))

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """Percentiles of the values kept."""
        found: list[float] = np.percentile(np.concatenate(self._kept).astype(np.float64), percents).tolist()
        return found


class Moments(Samples):
    """Mean, deviation and extremes of all values, beside the values on the grid."""

    def __init__(self, step: int) -> None:
        """No values yet."""
        super().__init__(step)
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._low, self._high = math.inf, -math.inf

    def add(self, pixels: Pixels, valid: Bools | None) -> None:
        """Takes in the valid pixels of an array."""
        super().add(pixels, valid)
        values = (pixels.ravel() if valid is None else pixels[valid]).astype(np.float64)
        if values.size:
            mean = float(values.mean())
            self._merge(values.size, mean, float(((values - mean) ** 2).sum()))
            self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))

    def merge(self, other: Samples) -> None:
        """Adds what another one took in."""
        super().merge(other)
        if isinstance(other, Moments) and other._count:
            self._merge(other._count, other._mean, other._squares)
            self._low, self._high = min(self._low, other._low), max(self._high, other._high)

    @property
    def count(self) -> int:
        """Number of all values."""
        return self._count

    def moments(self) -> tuple[float, float, float, float]:
        """Mean, standard deviation, smallest and largest value."""
        return self._mean, math.sqrt(self._squares / self._count), self._low, self._high

    def _merge(self, count: int, mean: float, squares: float) -> None:
        """Chan's update of mean and sum of squared differences, which loses no digits to large means."""
        total, difference = self._count + count, mean - self._mean
        self._squares += squares + difference**2 * (self._count * count / total)
        self._mean += difference * count / total
        self._count = total


@dataclass(frozen=True)
class Statistics:
    """Of each band of a data set: mean, population standard deviation, extremes, percentiles, share of valid pixels.

    `percentiles` has a row per band, in the order of `PERCENTILES`.
    """

    dataset: str
    split: str
    num_images: int
    band_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    percentiles: tuple[tuple[float, ...], ...]
    valid_share: tuple[float, ...]

    def save(self, path: Path) -> None:
        """Writes a JSON file."""
        values = {"format": _FORMAT, "version": _VERSION, "percents": PERCENTILES, **asdict(self)}
        try:
            path.write_text(json.dumps(values, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another -o") from error


def load_mean_std(path: str | Path) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Band names, means and standard deviations of a file that `Statistics.save` wrote.

    Raises:
        UserError: missing, damaged, or something else.
    """
    try:
        values = json.loads(Path(path).read_text())
        names, mean, std = tuple(values["band_names"]), tuple(values["mean"]), tuple(values["std"])
        right = values["format"] == _FORMAT and values["version"] <= _VERSION and len(names) == len(mean) == len(std)
        right &= all(math.isfinite(value) for value in (*mean, *std)) and all(isinstance(name, str) for name in names)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: expected statistics written by `spectralgpt prepare stats` ({error})") from error
    if not right:
        raise UserError(f"{path}: expected statistics of format {_VERSION} written by `spectralgpt prepare stats`")
    return names, mean, std


def measure(
    dataset: PatchDataset, name: str, *, num_workers: int = 1, max_bad: float = 0.01
) -> tuple[Statistics, workers.Bad]:
    """Statistics of all images of a data set and the images that could not be read.

    Args:
        dataset: the images.
        name: of the data set, for the file.
        num_workers: processes; the result does not depend on their number. 0 works in this one.
        max_bad: share of images that may be unreadable.

    Raises:
        UserError: too many bad images, or a band without a valid pixel.
    """
    count = len(dataset)
    if not count:
        raise UserError(f"{dataset.root}: expected images in split {dataset.split!r}, got none")
    first = _first(dataset).pixels
    step = max(math.ceil(math.sqrt(count * first[..., 0, :, :].size / SAMPLES)), 1)
    ends = np.linspace(0, count, min(_TASKS, count) + 1).astype(int).tolist()
    tasks = [_Task(range(start, end), first.dtype, step) for start, end in pairwise(ends)]
    results = workers.run(
        _measure, tasks, dataset, num_images=count, num_workers=num_workers, max_bad=max_bad, title=str(dataset.root)
    )
    (bands, num_pixels, bad), *others = results
    for more_bands, more_pixels, more_bad in others:
        num_pixels += more_pixels
        bad += more_bad
        for band, other in zip(bands, more_bands, strict=True):
            band.merge(other)
    return _statistics(dataset, name, bands, num_pixels, count - len(bad)), bad


class _Task(NamedTuple):
    images: range
    dtype: np.dtype[Any]
    step: int


def _first(dataset: PatchDataset) -> Record:
    """The first image that can be read; its type is the one expected of all."""
    problem: Exception | None = None
    for index in range(len(dataset)):
        try:
            return dataset.read(index)
        except (UserError, OSError) as error:
            problem = problem or error
    raise UserError(f"{dataset.root}: expected images that can be read, got none; the first: {problem}")


def _measure(
    dataset: PatchDataset, task: _Task, progress: workers.Progress
) -> tuple[tuple[list[Any], int, workers.Bad], workers.Bad]:
    """Accumulators of each band over some images, number of pixels per band, and the bad images."""
    exact = task.dtype.kind in "iu" and task.dtype.itemsize <= 2
    bands = [Counts(task.dtype) if exact else Moments(task.step) for _ in dataset.card.bands]
    bad, num_pixels = [], 0
    for record, named in progress.read(dataset, task.images):
        if record is None:
            bad.append(named)
        elif exact and record.pixels.dtype != task.dtype:
            found = record.pixels.dtype
            bad.append((record.name, f"expected {task.dtype} pixels as in the first image, got {found}"))
        else:
            pixels, valid = record.pixels, record.valid
            num_pixels += pixels[..., 0, :, :].size
            for place, band in enumerate(bands):
                band.add(pixels[..., place, :, :], None if valid is None else valid[..., place, :, :])
    return (bands, num_pixels, bad), bad


def _statistics(dataset: PatchDataset, name: str, bands: list[Any], num_pixels: int, num_images: int) -> Statistics:
    empty = [band for band, found in zip(dataset.card.names, bands, strict=True) if not found.count]
    if empty:
        raise UserError(f"{dataset.root}: expected valid pixels in every band, got only no-data in {' '.join(empty)}")
    mean, std, low, high = zip(*(band.moments() for band in bands), strict=True)
    return Statistics(
        dataset=name,
        split=dataset.split,
        num_images=num_images,
        band_names=dataset.card.names,
        mean=mean,
        std=std,
        low=low,
        high=high,
        percentiles=tuple(tuple(band.percentiles(PERCENTILES)) for band in bands),
        valid_share=tuple(band.count / num_pixels for band in bands),
    )
