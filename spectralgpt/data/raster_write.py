# SPDX-License-Identifier: Apache-2.0
"""Cloud-optimised GeoTIFFs of any size, from rows that arrive one after another.

GDAL writes that format from a finished raster only, so the rows go into a tiled file beside it first. What a full disk
does to the last bytes of a file, GDAL and rasterio let pass without a word (seen at 6 of 60 sizes), so the result is
read back and compared.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import xxhash
from numpy.typing import NDArray

from spectralgpt.data.raster import Bools, Pixels, reason  # first: it sets up GDAL
from spectralgpt.errors import UserError

import rasterio  # type: ignore[import-untyped]  # isort: skip
import rasterio.shutil  # type: ignore[import-untyped]  # isort: skip
from rasterio._err import CPLE_BaseError  # type: ignore[import-untyped]  # isort: skip
from rasterio.enums import Resampling  # type: ignore[import-untyped]  # isort: skip
from rasterio.errors import NotGeoreferencedWarning, RasterioError  # type: ignore[import-untyped]  # isort: skip
from rasterio.windows import Window  # type: ignore[import-untyped]  # isort: skip

BLOCK = 512
"""Rows and columns of a block; rows that come in multiples of it are compressed once."""
_LEAST_BLOCK = 32
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class RasterLayout:
    """What a raster is, but its pixels.

    Attributes:
        shape: rows and columns.
        dtype: of the pixels, as NumPy names it.
        bands: name of each band.
        crs: coordinate system, or None.
        transform: (column, row) to coordinates, or None.
        nodata: value that means "no data", or None.
        colours: "#rrggbb" of the values 0, 1, ... of an 8-bit raster; "no data" becomes transparent.
        classes: names of the values 0, 1, ...
        scale: a pixel means value * scale.
        tags: text by name.
        is_categorical: whether overviews take the most frequent value instead of the mean.
    """

    shape: tuple[int, int]
    dtype: str
    bands: tuple[str, ...]
    crs: Any = None
    transform: Any = None
    nodata: float | None = None
    colours: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    scale: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    is_categorical: bool = False

    @property
    def row_bytes(self) -> int:
        """Of all bands, uncompressed."""
        return len(self.bands) * self.shape[1] * np.dtype(self.dtype).itemsize


def write_cog(path: Path, layout: RasterLayout, strips: Iterable[tuple[int, Pixels]]) -> None:
    """Writes a tiled, compressed, cloud-optimised GeoTIFF with overviews. Whoever needs it whole or absent renames it.

    Names of classes are tags; and, as GDAL and QGIS take them for legends from there alone, in `<path>.aux.xml`.

    Args:
        path: the file; a file named `.<name>.tif` beside it holds the pixels meanwhile.
        layout: what it is.
        strips: first row, and pixels `(bands, n, W)`; each row once, best in multiples of `BLOCK`.

    Raises:
        UserError: the disk is full or refuses.
    """
    plain = path.with_name(f".{path.name}.tif")
    options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": _side(layout), "BIGTIFF": "IF_SAFER"}
    if np.dtype(layout.dtype).itemsize > 1:
        options["PREDICTOR"] = "YES"
    try:
        with blaming_writes(path), _placeless():
            sums = _write_plain(plain, layout, strips)
            _add_overviews(plain, layout)
            rasterio.shutil.copy(plain, path, driver="COG", **options)
            _compare(path, layout.shape[1], sums)
            if layout.classes:
                names_file(path).write_text(_category_names(layout.classes), encoding="utf-8")
    finally:
        plain.unlink(missing_ok=True)


def names_file(path: Path) -> Path:
    """Where GDAL looks for the names of a raster's classes."""
    return path.with_name(f"{path.name}.aux.xml")


def read_tags(path: Path) -> dict[str, str]:
    """The tags of a raster written here; none where the file is something else."""
    try:
        with _placeless(), rasterio.open(path, driver="GTiff", sharing=False) as file:
            return dict(file.tags())
    except RasterioError:
        return {}


def read_layout(path: Path) -> RasterLayout:
    """What a raster written here is.

    Raises:
        UserError: it cannot be opened.
    """
    with _reading(path) as file:
        transform = None if file.transform.is_identity else file.transform
        return RasterLayout(file.shape, file.dtypes[0], file.descriptions, file.crs, transform, file.nodata)


def read_parts(path: Path, rows: int, columns: int) -> Iterator[tuple[int, int, Pixels, Bools]]:
    """A raster written here, piece by piece: row, column, pixels `(bands, n, m)`, and where the first band holds data.

    Args:
        path: of any number of bands, unlike files from elsewhere.
        rows: of a piece, at most.
        columns: likewise.

    Raises:
        UserError: it cannot be read.
    """
    with _reading(path) as file:
        for row in range(0, file.height, rows):
            for column in range(0, file.width, columns):
                window = Window(column, row, min(columns, file.width - column), min(rows, file.height - row))
                yield row, column, file.read(window=window), file.read_masks(1, window=window) != 0


def class_names(path: Path) -> dict[int, str]:
    """The names of a map's classes by their numbers; none where the file is something else."""
    tags = read_tags(path)
    return {int(key[6:]): text for key, text in tags.items() if key[:6] == "CLASS_" and key[6:].isdecimal()}


def read_class_map(path: Path, longest: int) -> tuple[NDArray[np.uint8], dict[int, tuple[str, str]]]:
    """A map of classes written here, thinned to so many rows and columns at most.

    Returns:
        The class of each pixel `(H, W)`, and the name and "#rrggbb" of each class by its number.

    Raises:
        UserError: no such map.
    """
    names = class_names(path)
    if not names:
        raise UserError(f"{path}: expected a map of classes made by spectralgpt predict, got none")
    try:
        with _placeless(), rasterio.open(path, driver="GTiff", sharing=False) as file:
            share = min(1.0, longest / max(file.shape))
            size = tuple(max(1, round(length * share)) for length in file.shape)
            values, table = file.read(1, out_shape=size), file.colormap(1)
    except (RasterioError, ValueError) as error:
        raise UserError(f"{path}: expected a map with a colour table, got: {reason(error)}") from error
    colours = {value: "#" + bytes(colour[:3]).hex() for value, colour in table.items()}
    return values, {value: (name, colours.get(value, "#000000")) for value, name in names.items()}


@contextmanager
def blaming_writes(path: Path) -> Iterator[None]:
    """One line, naming the file, for whatever the disk or GDAL says while a file is written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or reason(error)})") from error
    except (RasterioError, CPLE_BaseError, SystemError) as error:  # whatever rasterio makes of what GDAL said
        raise UserError(f"{path}: cannot be written ({reason(error)}){_room(path)}") from error


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """A raster written here, opened."""
    try:
        with _placeless(), rasterio.open(path, driver="GTiff", sharing=False) as file:
            yield file
    except RasterioError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error


@contextmanager
def _placeless() -> Iterator[None]:
    """A raster without coordinates is no fault here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _room(path: Path) -> str:
    try:
        return f"; {shutil.disk_usage(path.parent).free / 1e6:.6g} MB are free there"
    except OSError:
        return ""


def _write_plain(path: Path, layout: RasterLayout, strips: Iterable[tuple[int, Pixels]]) -> list[tuple[int, int, int]]:
    """Writes all rows; returns of each strip its first row, number of rows, and checksum."""
    height, width = layout.shape
    shape = {"count": len(layout.bands), "height": height, "width": width, "dtype": layout.dtype}
    place = {"crs": layout.crs, "transform": layout.transform, "nodata": layout.nodata}
    blocks = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "zstd", "zstd_level": 1}
    blocks |= {"bigtiff": "if_safer", "interleave": "pixel" if len(layout.bands) == 1 else "band"}
    sums = []
    with rasterio.open(path, "w", driver="GTiff", **shape, **place, **blocks) as file:
        for row, pixels in strips:
            sums.append((row, pixels.shape[1], _checksum(pixels)))
            file.write(pixels, window=Window(0, row, width, pixels.shape[1]))
        file.descriptions = layout.bands
        file.update_tags(**layout.tags, **{f"CLASS_{value}": name for value, name in enumerate(layout.classes)})
        if layout.scale is not None:
            file.scales = (layout.scale,) * len(layout.bands)
        if layout.colours:
            file.write_colormap(1, _colour_table(layout.colours, layout.nodata))
    return sums


def _add_overviews(path: Path, layout: RasterLayout) -> None:
    """Each half the size of the one before, down to a block.

    Band by band, as the plain file is laid out. The COG driver would do it for all bands at once, which took twice the
    time and a gigabyte more for 12 bands of 20,000 columns.
    """
    count = math.ceil(math.log2(max(1.0, max(layout.shape) / _side(layout))))
    resampling = Resampling.mode if layout.is_categorical else Resampling.average
    if count:
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2 << level for level in range(count)], resampling)


def _compare(path: Path, width: int, sums: Sequence[tuple[int, int, int]]) -> None:
    with rasterio.open(path, driver="GTiff", sharing=False) as file:
        for row, height, expected in sums:
            if _checksum(file.read(window=Window(0, row, width, height))) != expected:
                raise UserError(f"{path}: cannot be written (rows {row} to {row + height - 1} came out changed)")


def _checksum(pixels: Pixels) -> int:
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(pixels).data)


def _category_names(classes: Sequence[str]) -> str:
    names = "".join(f"<Category>{escape(name)}</Category>" for name in classes)
    band = f'<PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand>'
    return f"<PAMDataset>{band}</PAMDataset>\n"


def _side(layout: RasterLayout) -> int:
    """Rows and columns of a block, which holds all bands together: less where there are hundreds of them."""
    side, pixel = BLOCK, len(layout.bands) * np.dtype(layout.dtype).itemsize
    while side > _LEAST_BLOCK and side * side * pixel > _BLOCK_BYTES:
        side //= 2
    return side


def _colour_table(colours: Sequence[str], nodata: float | None) -> dict[int, tuple[int, int, int, int]]:
    table = {value: (*bytes.fromhex(text.lstrip("#")), 255) for value, text in enumerate(colours)}
    return table if nodata is None else {**table, int(nodata): (0, 0, 0, 0)}
