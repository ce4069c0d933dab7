# SPDX-License-Identifier: Apache-2.0
"""A `Scene`: bands of one image, asked for by name, on one common grid.

The grid is that of the finest band asked for. Coarser bands are resampled by their geotransforms, and by the
ratio of the shapes only where the files carry none. Any window gives the same bits as that part of the whole
image, whether the scene is kept in memory or read from disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectralgpt.data.bands import SensorCard, sensor_card
from spectralgpt.data.opening import Missing, complete, find_source, set_values
from spectralgpt.data.paths import local
from spectralgpt.data.places import Place, pixel_area
from spectralgpt.data.raster import Bools, Header, Pixels, read_window
from spectralgpt.data.resample import Axis, Floats, resample
from spectralgpt.errors import UserError

_STRIP_ROWS = 512
_STRIP_BYTES = 32 << 20
_MAX_OFFSET = 1e9


@dataclass(frozen=True)
class _Source:
    """Bands of one file: their 1-based numbers in it, their channels in the scene, and where they lie."""

    header: Header
    numbers: list[int]
    channels: list[int]
    rows: Axis
    columns: Axis


class Scene:
    """Named bands of one image on a common grid.

    Attributes:
        name: shown to users.
        path: the file or folder.
        card: the sensor, cut to the bands shown.
        band_names: canonical names, in the order of the channels.
        scales: per channel, reflectance = (value - offset) * scale; None where neither the product, the file nor
            the card says. Told, and applied only where `reflectance` was asked for.
        offsets: per channel, likewise; None is unknown.
        metadata: product, level, processing baseline, where the offset is from, whether values are reflectance,
            and which band stands in for a missing one: to be kept with whatever is made of the scene.
        shape: rows and columns of the common grid.
        dtype: an integer type where 8 or 16 bits hold every band, else float32; resampled bands are rounded
            to it.
        crs: coordinate system, or None.
        transform: (column, row) to coordinates, an affine.Affine, or None.
    """

    def __init__(
        self, name: str, path: Path, card: SensorCard, places: Sequence[Place], metadata: Mapping[str, str]
    ) -> None:
        """Use `Scene.open`; `places` says for each band of the card where it lies."""
        headers = list({place.header.path: place.header for place in places}.values())
        grid = _common_grid(headers)
        self.name, self.path, self.card, self.band_names = name, path, card, card.names
        self.shape, self.crs, self.transform = grid.shape, grid.crs, grid.transform
        self.scales, self.offsets = tuple(place.scale for place in places), tuple(place.offset for place in places)
        self.metadata = dict(metadata)
        self._is_reflectance = metadata.get("values") == "reflectance"
        self.dtype = np.dtype(np.float32) if self._is_reflectance else _common_dtype(headers)
        self._sources: list[_Source] = []
        for header in headers:
            channels = [i for i, place in enumerate(places) if place.header.path == header.path]
            numbers = [places[i].number for i in channels]
            self._sources.append(_Source(header, numbers, channels, *axes(header, grid)))
        # Tensors, because those go to worker processes as shared memory instead of as copies.
        self._pixels: torch.Tensor | None = None
        self._valid: torch.Tensor | None = None
        self._whole: torch.Tensor | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        card: SensorCard | str | None = None,
        bands: Sequence[str] | None = None,
        band_order: Sequence[str] | None = None,
        name: str | None = None,
        *,
        reflectance: bool = False,
        offset: float | None = None,
        missing: Missing = "error",
    ) -> Scene:
        """Opens a multi-band file, a folder with one file per band or a product folder; reads headers only.

        Args:
            path: the file or folder; an ENVI image by its .hdr file.
            card: the sensor or its name. None: that of a product folder, or of a file whose tags give wavelengths.
            bands: names or aliases of the bands to show, in this order; all of the card by default.
            band_order: what the bands of a file without descriptions are, in file order; "-" for one to pass
                over.
            name: for messages; the path's last part by default.
            reflectance: give reflectance instead of the stored numbers.
            offset: the number that stands for reflectance 0, where metadata do not say: 1000 for Sentinel-2 from
                processing baseline 04.00 on, 0 before.
            missing: what to do about a band that is not there: refuse, leave it out ("drop"), or show the band
                with the nearest wavelength in its place ("nearest"); `metadata` then says so.

        Raises:
            UserError: the path, its format, its bands or its geometry do not serve.
        """
        path = local(path)
        card = sensor_card(card) if isinstance(card, str) else card
        # A misspelt band is told before the path is looked at.
        wanted = card.select(card.names if bands is None else bands) if card is not None and card.bands else None
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        try:
            source = find_source(path, card, band_order)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error})") from error
        full = source.card if card is None or wanted is None else card
        wanted = wanted or full.select(full.names if bands is None else bands)
        wanted, places, metadata = complete(path, full, wanted, source, missing)
        places, metadata = set_values(path, wanted, places, metadata, reflectance, offset)
        return cls(name or path.resolve().name, path, replace(wanted, nodata=source.card.nodata), places, metadata)

    @property
    def nbytes(self) -> int:
        """Memory that `load` takes at most: pixels, and a byte of validity for each."""
        return len(self.band_names) * self.shape[0] * self.shape[1] * (self.dtype.itemsize + 1)

    @property
    def headers(self) -> tuple[Header, ...]:
        """Of the files behind the bands."""
        return tuple(source.header for source in self._sources)

    @property
    def is_loaded(self) -> bool:
        """Whether the pixels are in memory."""
        return self._pixels is not None

    def load(self) -> None:
        """Reads all pixels into memory; later reads are slices of it."""
        size = (len(self.band_names), *self.shape)
        pixels, valid = np.empty(size, self.dtype), np.ones(size, bool)
        for row, strip, strip_valid in self.strips():
            pixels[:, row : row + strip.shape[1]] = strip
            if strip_valid is not None:
                valid[:, row : row + strip.shape[1]] = strip_valid
        self._pixels = torch.from_numpy(pixels)
        if not valid.all():
            self._valid, self._whole = torch.from_numpy(valid), torch.from_numpy(valid.all(axis=0))

    def strips(self) -> Iterator[tuple[int, Pixels, Bools | None]]:
        """The whole scene from top to bottom: first row, and what `read_raw` gives for the strip."""
        height, width = self.shape
        on_disk = sum(source.header.stamp[1] for source in self._sources)
        budget = max(_STRIP_BYTES, min(on_disk, 8 * _STRIP_BYTES))  # much only for who brings much
        rows = max(1, min(_STRIP_ROWS, budget * height // self.nbytes))
        for row in range(0, height, rows):
            yield (row, *self.read_raw(row, 0, min(rows, height - row), width))

    def read(self, row: int, column: int, height: int, width: int) -> tuple[Floats, Bools]:
        """A window as float32 `(C, h, w)`, and the validity of each value; invalid ones are 0."""
        pixels, valid = self.read_raw(row, column, height, width)
        return pixels.astype(np.float32), np.ones(pixels.shape, bool) if valid is None else valid.copy()

    def read_raw(self, row: int, column: int, height: int, width: int) -> tuple[Pixels, Bools | None]:
        """The same in the scene's type, as a view of memory if loaded; None instead of all-true validity."""
        if min(row, column, height, width) < 0 or row + height > self.shape[0] or column + width > self.shape[1]:
            raise ValueError(f"{self.name}: expected a window in {self.shape}, got {row, column, height, width}")
        if self._pixels is not None:
            rows, columns = slice(row, row + height), slice(column, column + width)
            pixels = self._pixels.numpy()[:, rows, columns]
            if self._valid is None or self._whole is None or self._whole.numpy()[rows, columns].all():
                return pixels, None
            return pixels, self._valid.numpy()[:, rows, columns]
        pixels = np.empty((len(self.band_names), height, width), self.dtype)
        valid = np.empty(pixels.shape, bool)
        for source in self._sources:
            pixels[source.channels], valid[source.channels] = self._read(source, row, column, height, width)
        return pixels, None if valid.all() else valid

    def columns_apart(self, column: int) -> int:
        """How many columns from the left share no file pixel with `column` and those right of it.

        A pixel of a coarse band reaches, through resampling, into up to two of its own widths.
        """
        width = self.shape[1]
        if column >= width:
            return width
        apart = np.arange(width) < column
        for source in self._sources:
            if not source.columns.is_identity(width):
                taps = source.columns.taps(0, width)
                first, last = np.minimum(taps.low, taps.high), np.maximum(taps.low, taps.high)
                apart &= (last < first[column:].min()) | (first > last[column:].max())
        return int(apart.sum())

    def _read(self, source: _Source, row: int, column: int, height: int, width: int) -> tuple[Pixels, Bools]:
        rows, columns = source.rows, source.columns
        if rows.is_identity(self.shape[0]) and columns.is_identity(self.shape[1]):
            return self._read_file(source, row, column, height, width)
        y, x = rows.taps(row, height), columns.taps(column, width)
        (top, bottom), (left, right) = y.span, x.span
        pixels, valid = self._read_file(source, top, left, bottom - top, right - left)
        planes = [
            resample(plane.astype(np.float32), ok, y.shifted(top), x.shifted(left))
            for plane, ok in zip(pixels, valid, strict=True)
        ]
        values, oks = np.stack([plane for plane, _ in planes]), np.stack([ok for _, ok in planes])
        return np.rint(values) if self.dtype.kind in "iu" else values, oks

    def _read_file(self, source: _Source, row: int, column: int, height: int, width: int) -> tuple[Pixels, Bools]:
        raw, valid = read_window(source.header, source.numbers, row, column, height, width)
        if self.card.nodata is not None and not source.header.has_nodata:
            valid &= raw != self.card.nodata
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, so invalid
            pixels = raw.astype(self.dtype, copy=self._is_reflectance)
            if self._is_reflectance:
                pixels -= np.array([self.offsets[i] for i in source.channels], np.float32)[:, None, None]
                pixels *= np.array([self.scales[i] for i in source.channels], np.float32)[:, None, None]
        if self.dtype.kind == "f":
            valid &= np.isfinite(pixels)
        if not valid.all():
            pixels[~valid] = 0
        return pixels, valid


def _common_grid(headers: list[Header]) -> Header:
    first = headers[0]
    for other in headers[1:]:
        if other.crs != first.crs:
            raise UserError(
                f"{first.path}, {other.path.name}: expected one coordinate system, got {first.crs} and {other.crs}"
            )
        if (other.transform is None) != (first.transform is None):
            raise UserError(f"{first.path}, {other.path.name}: expected a geotransform in all files or in none")
    return min(headers, key=pixel_area)


def _common_dtype(headers: list[Header]) -> np.dtype[Any]:
    dtype = np.result_type(*(header.dtype for header in headers))
    return dtype if dtype.kind in "iu" and dtype.itemsize <= 2 else np.dtype(np.float32)


def axes(header: Header, grid: Header | Scene) -> tuple[Axis, Axis]:
    """Rows and columns of a file under a common grid.

    Raises:
        UserError: the two do not lie parallel, or not near each other.
    """
    (height, width), (grid_height, grid_width) = header.shape, grid.shape
    if header.transform == grid.transform and header.shape == grid.shape:
        return Axis(0.0, 1.0, height), Axis(0.0, 1.0, width)
    if header.transform is None:
        return _step_checked(header, Axis(0.0, height / grid_height, height), Axis(0.0, width / grid_width, width))
    to_file = np.reshape(~header.transform, (3, 3)) @ np.reshape(grid.transform, (3, 3))
    (column_step, shear_x, left), (shear_y, row_step, top), _ = to_file.tolist()
    if abs(shear_x) * grid_height > 0.01 or abs(shear_y) * grid_width > 0.01:
        raise UserError(f"{header.path}: expected a grid parallel to that of {grid.path.name}, got a rotated one")
    return _step_checked(header, Axis(top, row_step, height), Axis(left, column_step, width))


def _step_checked(header: Header, rows: Axis, columns: Axis) -> tuple[Axis, Axis]:
    """Refuses what is not the same image: a small window could make us read a long one."""
    is_near = abs(rows.start) < _MAX_OFFSET and abs(columns.start) < _MAX_OFFSET
    if not (is_near and 0.5 <= abs(rows.step / columns.step) <= 2):
        raise UserError(
            f"{header.path}: expected pixels shaped as in the other files of the image, and near them, got steps of "
            f"{rows.step:.3g} x {columns.step:.3g} pixels from {rows.start:.3g}, {columns.start:.3g}"
        )
    return rows, columns
