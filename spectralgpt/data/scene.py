# SPDX-License-Identifier: Apache-2.0
"""A `Scene`: bands of one image, asked for by name, on one common grid.

The grid is that of the finest band asked for. Coarser bands are resampled by their geotransforms, and by the
ratio of the shapes only where the files carry none. Any window gives the same bits as that part of the whole
image, whether the scene is kept in memory or read from disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectralgpt.data.bands import SensorCard
from spectralgpt.data.discover import band_files
from spectralgpt.data.raster import Bools, Header, Pixels, read_header, read_window
from spectralgpt.data.resample import Axis, Floats, resample
from spectralgpt.errors import UserError

_STRIP_ROWS = 512


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
        band_names: canonical names, in the order of the channels.
        shape: rows and columns of the common grid.
        dtype: an integer type where 8 or 16 bits hold every band, else float32; resampled bands are rounded
            to it.
        crs: coordinate system, or None.
        transform: (column, row) to coordinates, an affine.Affine, or None.
    """

    def __init__(self, name: str, path: Path, card: SensorCard, places: dict[str, tuple[Header, int]]) -> None:
        """Use `Scene.open`; `places` gives the file of each band of the card and its 1-based number there."""
        headers = list({header.path: header for header, _ in map(places.__getitem__, card.names)}.values())
        grid = _common_grid(headers)
        self.name, self.path, self.band_names = name, path, card.names
        self.shape, self.crs, self.transform = grid.shape, grid.crs, grid.transform
        self.dtype = _common_dtype(headers)
        self._nodata = card.nodata
        self._sources: list[_Source] = []
        for header in headers:
            channels = [i for i, band in enumerate(card.names) if places[band][0].path == header.path]
            numbers = [places[card.names[i]][1] for i in channels]
            self._sources.append(_Source(header, numbers, channels, *_axes(header, grid)))
        # Tensors, because those go to worker processes as shared memory instead of as copies.
        self._pixels: torch.Tensor | None = None
        self._valid: torch.Tensor | None = None
        self._whole: torch.Tensor | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        card: SensorCard,
        bands: Sequence[str] | None = None,
        band_order: Sequence[str] | None = None,
        name: str | None = None,
    ) -> Scene:
        """Opens a multi-band file or a folder with one file per band; reads headers only.

        Args:
            path: the file or folder.
            card: the sensor.
            bands: names or aliases of the bands to show, in this order; all of the card by default.
            band_order: what the bands of a file without descriptions are, in file order; "-" for one to pass
                over.
            name: for messages; the path's last part by default.

        Raises:
            UserError: the path, its format, its bands or its geometry do not serve.
        """
        path = Path(path).expanduser()
        wanted = card.select(card.names if bands is None else bands)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        try:
            places = _folder_places(path, card) if path.is_dir() else _file_places(path, card, band_order)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error})") from error
        missing = [band for band in wanted.names if band not in places]
        if missing:
            there = f"there is {' '.join(places)}; leave the missing out of data.bands" if places else "found none"
            raise UserError(f"{path}: expected band {' '.join(missing)}, {there}")
        return cls(name or path.resolve().name, path, wanted, places)

    @property
    def nbytes(self) -> int:
        """Memory that `load` takes at most: pixels, and a byte of validity for each."""
        return len(self.band_names) * self.shape[0] * self.shape[1] * (self.dtype.itemsize + 1)

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
        for row in range(0, height, _STRIP_ROWS):
            yield (row, *self.read_raw(row, 0, min(_STRIP_ROWS, height - row), width))

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
        if self._nodata is not None and not source.header.has_nodata:
            valid &= raw != self._nodata
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, so invalid
            pixels = raw.astype(self.dtype, copy=False)
        if self.dtype.kind == "f":
            valid &= np.isfinite(pixels)
        if not valid.all():
            pixels[~valid] = 0
        return pixels, valid


def _file_places(path: Path, card: SensorCard, band_order: Sequence[str] | None) -> dict[str, tuple[Header, int]]:
    """Which band of a multi-band file is which."""
    header = read_header(path)
    count = len(header.descriptions)
    if band_order is not None:
        if len(band_order) != count:
            raise UserError(f"{path}: data.band_order names {len(band_order)} bands, the file has {count}")
        names = [None if name == "-" else card.canonical(name) for name in band_order]
    else:
        names = [None if text is None else card.find(text) for text in header.descriptions]
        if not any(names):
            raise UserError(
                f"{path}: expected band names in the {count} band descriptions, found none; name the bands "
                f"in data.band_order, out of {' '.join(card.names)}, or - for one to pass over"
            )
    places: dict[str, tuple[Header, int]] = {}
    for number, name in enumerate(names, start=1):
        if name is not None and places.setdefault(name, (header, number)) != (header, number):
            raise UserError(
                f"{path}: band {name} is there twice, as {places[name][1]} and {number}; use data.band_order"
            )
    return places


def _folder_places(folder: Path, card: SensorCard) -> dict[str, tuple[Header, int]]:
    """The file of each band in a folder, the finest where a band comes at several resolutions."""
    places: dict[str, tuple[Header, int]] = {}
    for name, paths in band_files(folder, card).items():
        headers = sorted(map(read_header, paths), key=_pixel_area)
        if len(headers) > 1 and _pixel_area(headers[0]) == _pixel_area(headers[1]):
            raise UserError(
                f"{folder}: band {name} is there twice, as {headers[0].path.name} and "
                f"{headers[1].path.name}; give each scene a folder of its own"
            )
        if len(headers[0].descriptions) > 1:
            raise UserError(
                f"{headers[0].path}: expected one band, as the file name says {name}, got "
                f"{len(headers[0].descriptions)}; give multi-band files other names"
            )
        places[name] = (headers[0], 1)
    return {name: places[name] for name in card.names if name in places}


def _pixel_area(header: Header) -> float:
    """For comparing resolutions of one image: area on the ground, or the inverse of the pixel count."""
    if header.transform is None:
        return 1 / (header.shape[0] * header.shape[1])
    return abs(float(header.transform.determinant))


def _common_grid(headers: list[Header]) -> Header:
    first = headers[0]
    for other in headers[1:]:
        if other.crs != first.crs:
            raise UserError(
                f"{first.path}, {other.path.name}: expected one coordinate system, got {first.crs} and {other.crs}"
            )
        if (other.transform is None) != (first.transform is None):
            raise UserError(f"{first.path}, {other.path.name}: expected a geotransform in all files or in none")
    return min(headers, key=_pixel_area)


def _common_dtype(headers: list[Header]) -> np.dtype[Any]:
    dtype = np.result_type(*(header.dtype for header in headers))
    return dtype if dtype.kind in "iu" and dtype.itemsize <= 2 else np.dtype(np.float32)


def _axes(header: Header, grid: Header) -> tuple[Axis, Axis]:
    """Rows and columns of a file under the common grid."""
    (height, width), (grid_height, grid_width) = header.shape, grid.shape
    if header.transform is None:
        return Axis(0.0, height / grid_height, height), Axis(0.0, width / grid_width, width)
    to_file = np.reshape(~header.transform, (3, 3)) @ np.reshape(grid.transform, (3, 3))
    (column_step, shear_x, left), (shear_y, row_step, top), _ = to_file.tolist()
    if abs(shear_x) * grid_height > 0.01 or abs(shear_y) * grid_width > 0.01:
        raise UserError(f"{header.path}: expected a grid parallel to that of {grid.path.name}, got a rotated one")
    return Axis(top, row_step, height), Axis(left, column_step, width)
