# SPDX-License-Identifier: Apache-2.0
"""Raster files: headers, windows, masks, GeoTIFF output. The only module that imports rasterio.

Files are untrusted, and three rules hold for all of them. The driver follows from the file's first bytes, so
a text file cannot make GDAL open other files or the network. Headers are checked before the first read, so
that a file of 200 bytes cannot claim gigabytes. Sidecar files are ignored, since they would change values
unseen. A handle belongs to the process that opened it: one that crosses a fork reads wrong pixels without an
error.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectralgpt.data.discover import raster_driver
from spectralgpt.errors import UserError

os.environ.update(
    GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
    GDAL_PAM_ENABLED="NO",
    GDAL_VRT_ENABLE_PYTHON="NO",
    GDAL_VRT_ENABLE_RAWRASTERBAND="NO",
    CPL_VSIL_CURL_ALLOWED_EXTENSIONS=".none",
    CPL_VSIL_CURL_HEADER_FILE_KVP_ENABLED="NO",
    GDAL_DRIVER_PATH="disable",
    GDAL_HTTP_NETRC="NO",
    GDAL_NUM_THREADS="1",
    GDAL_CACHEMAX="64",
    GTIFF_IGNORE_READ_ERRORS="NO",
)

import rasterio  # type: ignore[import-untyped]
from rasterio.enums import Interleaving, MaskFlags  # type: ignore[import-untyped]
from rasterio.errors import NotGeoreferencedWarning, RasterioError  # type: ignore[import-untyped]
from rasterio.io import DatasetReader  # type: ignore[import-untyped]
from rasterio.windows import Window  # type: ignore[import-untyped]

Pixels = NDArray[Any]
Bools = NDArray[np.bool_]

_MAX_BANDS = 1024
_MAX_PIXELS = 1 << 35
_MAX_BLOCK_BYTES = 64 << 20
_OPEN_FILES = 128


@dataclass(frozen=True)
class Header:
    """What is known of a file without reading pixels.

    `transform` maps (column, row) to coordinates and is None where the file has none; `stamp` tells this file
    from one written later under the same path.
    """

    path: Path
    stamp: tuple[int, int]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    transform: Any
    crs: Any
    descriptions: tuple[str | None, ...]
    has_nodata: bool
    has_mask: bool


def read_header(path: Path) -> Header:
    """Opens a GeoTIFF or JPEG 2000 file and checks that reading it is safe.

    Raises:
        UserError: no raster, damaged, or sizes beyond reason.
    """
    status = path.stat()
    stamp = (status.st_mtime_ns, status.st_size)
    file = _open(path, stamp, os.getpid())
    transform = None if file.transform.is_identity else file.transform
    if transform is not None and transform.is_degenerate:
        raise UserError(f"{path}: expected a geotransform with pixels of some size, got {tuple(transform)[:6]}")
    return Header(
        path=path,
        stamp=stamp,
        shape=file.shape,
        dtype=np.result_type(*file.dtypes),
        transform=transform,
        crs=file.crs,
        descriptions=file.descriptions,
        has_nodata=any(value is not None for value in file.nodatavals),
        has_mask=any(MaskFlags.all_valid not in flags for flags in file.mask_flag_enums),
    )


def read_window(
    header: Header, numbers: Sequence[int], row: int, column: int, height: int, width: int
) -> tuple[Pixels, Bools]:
    """Bands by their 1-based numbers, `(n, h, w)` in the file's type, and where the file calls them valid.

    Raises:
        UserError: the file is damaged.
    """
    window = Window(column, row, width, height)
    try:
        file = _open(header.path, header.stamp, os.getpid())
        pixels = file.read(list(numbers), window=window)
        if not header.has_mask:
            return pixels, np.ones(pixels.shape, bool)
        return pixels, file.read_masks(list(numbers), window=window) != 0
    except (OSError, RasterioError) as error:
        raise UserError(f"{header.path}: damaged raster ({_reason(error)})") from error


def write_geotiff(
    path: Path,
    pixels: Pixels,
    band_names: Sequence[str],
    *,
    crs: str,
    transform: Sequence[float],
    nodata: float | None = None,
) -> None:
    """Writes a tiled, compressed GeoTIFF with named bands; the file appears whole or not at all.

    Args:
        path: the file.
        pixels: `(C, H, W)`, any type a GeoTIFF has.
        band_names: stored as band descriptions.
        crs: for example "EPSG:32618".
        transform: a, b, c, d, e, f with x = a * column + b * row + c and y = d * column + e * row + f.
        nodata: declared in the file.
    """
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype, "nodata": nodata}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    place = {"crs": crs, "transform": rasterio.Affine(*transform)}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with rasterio.open(partial, "w", driver="GTiff", **shape, **layout, **place) as file:
            file.write(pixels)
            file.descriptions = tuple(band_names)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@lru_cache(maxsize=_OPEN_FILES)
def _open(path: Path, stamp: tuple[int, int], process: int) -> DatasetReader:
    """An open, checked file; the key makes every process and every version of a file open its own handle."""
    driver = raster_driver(path)
    if driver is None:
        raise UserError(f"{path}: expected a GeoTIFF or JPEG 2000 file, got neither by its content")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            file = rasterio.open(path.absolute(), driver=driver, sharing=False)
    except RasterioError as error:
        raise UserError(f"{path}: damaged raster ({_reason(error)})") from error
    _check_sizes(path, file)
    return file


def _check_sizes(path: Path, file: DatasetReader) -> None:
    if not 0 < file.count <= _MAX_BANDS:
        raise UserError(f"{path}: expected 1 to {_MAX_BANDS} bands, got {file.count}")
    if file.height * file.width > _MAX_PIXELS:
        raise UserError(f"{path}: expected at most {_MAX_PIXELS} pixels, got {file.height} x {file.width}")
    if any(np.dtype(name).kind not in "iuf" for name in file.dtypes):
        raise UserError(f"{path}: expected integer or floating-point pixels, got {file.dtypes[0]}")
    together = file.count if file.interleaving == Interleaving.pixel else 1
    for (height, width), dtype in zip(file.block_shapes, file.dtypes, strict=True):
        if height * width * np.dtype(dtype).itemsize * together > _MAX_BLOCK_BYTES:
            raise UserError(
                f"{path}: expected blocks of at most {_MAX_BLOCK_BYTES >> 20} MiB, got {height} x {width} "
                "pixels; rewrite it tiled, for example with gdal_translate -co TILED=YES"
            )


def _reason(error: BaseException) -> str:
    """The deepest cause in one line: rasterio puts what GDAL said there."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())
