# SPDX-License-Identifier: Apache-2.0
"""Raster files: headers, windows, masks, GeoTIFF output. Beside `raster_write` the only module that imports rasterio.

Files are untrusted, and three rules hold for all of them. The driver follows from the file's first bytes, so
a text file cannot make GDAL open other files or the network. Headers are checked before the first read, so
that a file of 200 bytes cannot claim gigabytes. Sidecar files are ignored, since they would change values
unseen. A handle belongs to the process that opened it: one that crosses a fork reads wrong pixels without an
error.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectralgpt.data.discover import raster_driver
from spectralgpt.data.envi import envi_data_file
from spectralgpt.data.tags import declared
from spectralgpt.errors import UserError

os.environ.update(
    GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
    GDAL_PAM_ENABLED="NO",
    GDAL_VRT_ENABLE_PYTHON="NO",
    GDAL_VRT_PYTHON_TRUSTED_MODULES="",
    GDAL_VRT_ENABLE_RAWRASTERBAND="NO",
    CPL_VSIL_CURL_ALLOWED_EXTENSIONS=".none",
    CPL_VSIL_CURL_HEADER_FILE_KVP_ENABLED="NO",
    GDAL_DRIVER_PATH="disable",
    GDAL_PYTHON_DRIVER_PATH="",
    GDAL_HTTP_HEADER_FILE="",
    GDAL_HTTP_NETRC="NO",
    GDAL_HTTP_UNSAFESSL="NO",
    GDAL_NUM_THREADS="1",
    GDAL_CACHEMAX="64",
    GTIFF_IGNORE_READ_ERRORS="NO",
    CPL_LOG=os.devnull,  # what GDAL says beside what it raises; not for the eyes of users
)

import rasterio  # type: ignore[import-untyped]
from rasterio.enums import Interleaving, MaskFlags  # type: ignore[import-untyped]
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError  # type: ignore[import-untyped]
from rasterio.io import DatasetReader  # type: ignore[import-untyped]
from rasterio.windows import Window, intersect  # type: ignore[import-untyped]

Pixels = NDArray[Any]
Bools = NDArray[np.bool_]

_MAX_BANDS = 1024
_MAX_SIDE = 1 << 22
_MAX_PIXELS = 1 << 35
_MAX_BLOCK_BYTES = 64 << 20
_MAX_EXPANSION = 1 << 14
_DTYPES = frozenset(f"{kind}{bits}" for kind in ("uint", "int", "float") for bits in (8, 16, 32, 64))
_OPEN_FILES = 128
_STACK = re.compile(r'\{"shape": \[(\d{1,4}), (\d{1,5}), (\d{1,4})\].*\}')


@dataclass(frozen=True)
class Header:
    """What is known of a file without reading pixels. Tuples have one entry per band, None where the file is silent.

    `transform` maps (column, row) to coordinates and is None where the file has none; `stamp` tells this file
    from one written later under the same path. `scales` and `offsets` are declared, not applied: the file means
    value * scale + offset. `wavelengths` and `widths` are in micrometres; `is_good` is the bad-band list.
    """

    path: Path
    stamp: tuple[int, int]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    transform: Any
    crs: Any
    descriptions: tuple[str | None, ...]
    nodatas: tuple[float | None, ...]
    has_mask: bool
    tags: Mapping[str, str]
    scales: tuple[float | None, ...]
    offsets: tuple[float | None, ...]
    units: tuple[str | None, ...]
    wavelengths: tuple[float | None, ...]
    widths: tuple[float | None, ...]
    is_good: tuple[bool, ...]

    @property
    def has_nodata(self) -> bool:
        """Whether a band declares a value for "no data"."""
        return any(value is not None for value in self.nodatas)


def read_header(path: Path) -> Header:
    """Opens a GeoTIFF, a JPEG 2000 file or an ENVI header and checks that reading it is safe.

    Raises:
        UserError: no raster, damaged, or sizes beyond reason.
    """
    with _blaming(path):
        return _header(path, _stamp(path))


def read_window(
    header: Header, numbers: Sequence[int], row: int, column: int, height: int, width: int
) -> tuple[Pixels, Bools]:
    """Bands by their 1-based numbers, `(n, h, w)` in the file's type, and where the file calls them valid.

    Raises:
        UserError: the file is damaged; names the first block that is.
    """
    window = Window(column, row, width, height)
    with _blaming(header.path):
        file = _open(header.path, header.stamp, os.getpid())
        try:
            pixels = file.read(list(numbers), window=window)
        except RasterioError as error:
            place = _first_damage(file, numbers, window)
            raise UserError(f"{header.path}: damaged raster ({reason(error)}){place}") from error
        valid = np.ones(pixels.shape, bool)
        if header.has_mask:
            np.not_equal(file.read_masks(list(numbers), window=window), 0, out=valid)
        if (height, width) == header.shape:
            _close(header)
        return pixels, valid


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


def read_png(path: Path) -> Pixels:
    """A PNG label picture, `(C, H, W)`; images never come as PNG, so nothing else opens them.

    Raises:
        UserError: no PNG, damaged, or sizes beyond reason.
    """
    with _blaming(path):
        if not path.is_file():  # opening a pipe waits for a writer
            raise UserError(f"{path}: expected a PNG file, got none")
        with path.open("rb") as start:
            if start.read(8) != b"\x89PNG\r\n\x1a\n":
                raise UserError(f"{path}: expected a PNG file, got another by its content")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path.absolute(), driver="PNG", sharing=False) as file:
                _check_sizes(path, file)
                nbytes = file.height * file.width * file.count * np.dtype(file.dtypes[0]).itemsize
                if nbytes > _MAX_BLOCK_BYTES:  # a PNG is unpacked whole
                    raise UserError(
                        f"{path}: expected a picture of at most {_MAX_BLOCK_BYTES >> 20} MiB unpacked, got "
                        f"{nbytes >> 20}; save it as a tiled GeoTIFF"
                    )
                pixels: Pixels = file.read()
                return pixels


def read_pages(header: Header) -> Pixels | None:
    """An array `(H, W, C)` that tifffile wrote as H pages of W x C pixels, or None where a file is no such stack.

    GDAL shows page by page, and opens each as a file of its own. tifffile says the shape in the description and
    lays the pages of an uncompressed array one after another, so where the last page lies where it must, the
    whole array is one block.

    Raises:
        UserError: the pages do not lie so, or the file is damaged.
    """
    with _blaming(header.path):
        file = _open(header.path, header.stamp, os.getpid())
        found = _STACK.fullmatch(file.tags().get("TIFFTAG_IMAGEDESCRIPTION", ""))
        if found is None or file.count != 1:
            return None
        height, width, bands = map(int, found.groups())
        with header.path.open("rb") as start:
            dtype = header.dtype.newbyteorder(">" if start.read(1) == b"M" else "<")
        nbytes = height * width * bands * dtype.itemsize
        first = _page_start(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(f"GTIFF_DIR:{height}:{header.path.absolute()}", driver="GTiff", sharing=False) as page:
                last = _page_start(page)
        is_one_block = file.shape == (width, bands) and last - first == (height - 1) * (nbytes // height)
        if not is_one_block or not 0 < first <= header.stamp[1] - nbytes:
            raise UserError(
                f"{header.path}: expected {height} uncompressed pages, one after another; rewrite it as GeoTIFF"
            )
        block = np.fromfile(header.path, dtype, height * width * bands, offset=first)
        return block.astype(header.dtype, copy=False).reshape(height, width, bands)


@lru_cache(maxsize=_OPEN_FILES)
def _header(path: Path, stamp: tuple[int, int]) -> Header:
    file = _open(path, stamp, os.getpid())
    return Header(
        path=path,
        stamp=stamp,
        shape=file.shape,
        dtype=np.result_type(*file.dtypes),
        transform=_transform(path, file),
        crs=file.crs,
        has_mask=any(MaskFlags.all_valid not in flags for flags in file.mask_flag_enums),
        **declared(file),
    )


_handles: dict[tuple[Path, tuple[int, int], int], DatasetReader] = {}


def _open(path: Path, stamp: tuple[int, int], process: int) -> DatasetReader:
    """An open, checked file; the key makes every process and every version of a file open its own handle."""
    key = path, stamp, process
    file = _handles.pop(key, None)
    _handles[key] = file = _opened(path, stamp) if file is None else file  # those used last come last
    if len(_handles) > _OPEN_FILES:
        _handles.pop(next(iter(_handles)), None)
    return file


def _close(header: Header) -> None:
    """Ends what `_open` keeps: a file read whole is done with, and a hundred idle handles slow the next ones down."""
    file = _handles.pop((header.path, header.stamp, os.getpid()), None)
    if file is not None:
        file.close()


def _opened(path: Path, stamp: tuple[int, int]) -> DatasetReader:
    if _stamp(path) != stamp:
        raise UserError(f"{path}: expected the file whose header was read, got another; do not write while others read")
    driver = raster_driver(path)
    if driver is None:
        raise UserError(f"{path}: expected a GeoTIFF or JPEG 2000 file, got neither by its content")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        file = _open_envi(path) if driver == "ENVI" else rasterio.open(path.absolute(), driver=driver, sharing=False)
    _check_sizes(path, file)
    claimed = file.height * file.width * sum(np.dtype(name).itemsize for name in file.dtypes)
    if claimed > max(_MAX_BLOCK_BYTES, _MAX_EXPANSION * stamp[1]):
        raise UserError(
            f"{path}: expected at least {claimed // _MAX_EXPANSION} bytes for {file.count} x {file.height} x "
            f"{file.width} pixels, got {stamp[1]}; the file is damaged, or sparse and nearly empty"
        )
    return file


def _open_envi(header: Path) -> DatasetReader:
    # GDAL finds the header by its name, and so it would other headers, masks and overviews, of any driver. Where it
    # looks there are but these two.
    with TemporaryDirectory(prefix="spectralgpt-") as folder, rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
        data = Path(folder, "image")
        data.symlink_to(envi_data_file(header).absolute())
        Path(folder, "image.hdr").symlink_to(header.absolute())
        return rasterio.open(data, driver="ENVI", sharing=False)


def _stamp(path: Path) -> tuple[int, int]:
    """Time and size of a file; of an ENVI image, those of both its files."""
    parts = [path.stat()]
    if path.suffix.lower() == ".hdr" and raster_driver(path) == "ENVI":
        parts.append(envi_data_file(path).stat())
    return max(part.st_mtime_ns for part in parts), sum(part.st_size for part in parts)


def _check_sizes(path: Path, file: DatasetReader) -> None:
    if not 0 < file.count <= _MAX_BANDS:
        raise UserError(f"{path}: expected 1 to {_MAX_BANDS} bands, got {file.count}")
    if file.height * file.width > _MAX_PIXELS or max(file.shape) > _MAX_SIDE:
        raise UserError(
            f"{path}: expected at most {_MAX_PIXELS} pixels and {_MAX_SIDE} a side, got {file.height} x {file.width}"
        )
    if not _DTYPES.issuperset(file.dtypes):
        raise UserError(f"{path}: expected integer or floating-point pixels, got {file.dtypes[0]}")
    together = file.count if file.interleaving == Interleaving.pixel else 1
    for (height, width), dtype in zip(file.block_shapes, file.dtypes, strict=True):
        if height * width * np.dtype(dtype).itemsize * together > _MAX_BLOCK_BYTES:
            raise UserError(
                f"{path}: expected blocks of at most {_MAX_BLOCK_BYTES >> 20} MiB, got {height} x {width} "
                "pixels; rewrite it tiled, for example with gdal_translate -co TILED=YES"
            )


def _transform(path: Path, file: DatasetReader) -> Any:  # noqa: ANN401 - an affine.Affine
    transform = file.transform
    if transform.is_identity:
        return None
    area = transform.determinant
    if not (all(map(math.isfinite, transform)) and math.isfinite(area) and area):
        raise UserError(f"{path}: expected a geotransform with pixels of some size, got {tuple(transform)[:6]}")
    return transform


def _page_start(page: DatasetReader) -> int:
    """Where the pixels of an uncompressed one-strip page begin; 0 where it is not such a page."""
    if page.compression is not None or page.block_shapes != [page.shape]:
        return 0
    return int(page.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1) or 0)


def _first_damage(file: DatasetReader, numbers: Sequence[int], window: Window) -> str:
    """Where in a window that cannot be read the first block lies that cannot: a file of gigabytes may lack but one."""
    for number in numbers:
        for _, block in file.block_windows(number):
            if not intersect(block, window):
                continue
            try:
                file.read(number, window=block)
            except RasterioError:
                (top, bottom), (left, right) = block.toranges()
                return f"; in rows {top} to {bottom - 1}, columns {left} to {right - 1} of band {number}"
    return ""


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Names the file in whatever GDAL, the file system or text in no known encoding raises."""
    try:
        yield
    except (RasterioError, CRSError, UnicodeError) as error:
        raise UserError(f"{path}: damaged raster ({reason(error)})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def reason(error: BaseException) -> str:
    """The deepest cause in one line: rasterio puts what GDAL said there."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())
