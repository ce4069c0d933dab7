# SPDX-License-Identifier: Apache-2.0
"""From raster files to records: what the data sets share in reading images and label rasters.

A file whose bands carry no names is read in the order its data set defines. A file that does name its bands
must name them in that order: a permutation is refused, never followed silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectralgpt.data.bands import SensorCard
from spectralgpt.data.raster import Bools, read_header, read_png, read_window
from spectralgpt.data.record import IGNORE, Record, extremes
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError

_MAX_BYTES = 1 << 30


def open_image(path: Path, sensor: SensorCard, bands: Sequence[str], order: Sequence[str], name: str) -> Scene:
    """A multi-band file whose bands lie in a known order.

    Raises:
        UserError: the file is missing, damaged, or its bands are others.
    """
    existing(path)
    descriptions = read_header(path).descriptions
    if len(descriptions) != len(order):
        raise UserError(f"{path}: expected {len(order)} bands, {' '.join(order)}, got {len(descriptions)}")
    for number, (text, expected) in enumerate(zip(descriptions, order, strict=True), start=1):
        found = None if text is None else sensor.find(text)
        if found is not None and found != sensor.canonical(expected):
            raise UserError(f"{path}: expected band {number} to be {expected}, its description says {text!r}")
    return Scene.open(path, sensor, bands, order, name)


def whole(scene: Scene, label: int | NDArray[np.uint8] | None = None, mask: NDArray[np.uint8] | None = None) -> Record:
    """The record of a whole scene.

    Raises:
        UserError: the file is damaged or has no valid pixel.
    """
    if scene.nbytes > _MAX_BYTES:
        height, width = scene.shape
        raise UserError(
            f"{scene.path}: expected an image of at most {_MAX_BYTES >> 20} MiB to be read whole, got "
            f"{len(scene.band_names)} x {height} x {width} pixels; cut it, or train on it as a scene"
        )
    pixels, valid = scene.read_raw(0, 0, *scene.shape)
    if valid is not None and not valid.any():
        raise no_data(scene.path)
    low, high = extremes(pixels, valid)
    transform = None if scene.transform is None else tuple(scene.transform)[:6]
    return Record(scene.name, pixels, valid, low, high, label, mask, crs_text(scene.crs), transform)


def no_data(path: Path) -> UserError:
    """The error for an image without a single valid pixel."""
    return UserError(f"{path}: expected an image with data, got no-data in every pixel; take it off the list")


def existing(path: Path) -> Path:
    """The path, or UserError where nothing is there."""
    if not path.exists():
        raise UserError(f"{path}: expected an image, no such file or folder; complete the archive or the list")
    return path


@lru_cache(maxsize=256)
def crs_text(crs: Any) -> str | None:  # noqa: ANN401 - rasterio's class, which only data/raster.py may import
    """A coordinate system as "EPSG:32632", or as WKT where it has no code."""
    return crs.to_string() if crs else None


def read_mask(
    path: Path, shape: tuple[int, int], table: Mapping[int, int], crs: str | None = None
) -> NDArray[np.uint8]:
    """A label raster as class indices `(H, W)`, `IGNORE` where the file declares no-data.

    Args:
        path: a one-band GeoTIFF, or a PNG whose colour bands are equal.
        shape: rows and columns it must have.
        table: code -> class index.
        crs: the image's coordinate system, which the label raster's must be where both have one.

    Raises:
        UserError: missing, damaged, of another size or place, of several bands, or with a code not in the table.
    """
    codes, valid = read_codes(path, crs)
    if codes.shape != shape:
        raise UserError(f"{path}: expected labels of {shape[0]} x {shape[1]} pixels as the image, got {codes.shape}")
    return remap(codes, table, path, valid)


def read_codes(path: Path, crs: str | None = None) -> tuple[NDArray[np.int64], Bools]:
    """The codes of a label raster `(H, W)`, and where it has any.

    Raises:
        UserError: as `read_mask`, but for size and table.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a label raster, no such file")
    codes, valid = _png(path) if path.suffix.lower() == ".png" else _tiff(path, crs)
    numbers = codes if codes.dtype.kind in "iu" else np.rint(np.where(valid, codes, 0))
    if not np.array_equal(numbers[valid], codes[valid]):
        raise UserError(f"{path}: expected whole numbers as class codes, got fractions")
    return numbers.astype(np.int64), valid


def remap(codes: NDArray[np.int64], table: Mapping[int, int], where: Path, valid: Bools) -> NDArray[np.uint8]:
    """Class indices of codes; `IGNORE` where `valid` is false.

    Raises:
        UserError: a code is not in the table.
    """
    found, position = np.unique(codes, return_inverse=True)
    unknown = [int(code) for code in np.unique(codes[valid]) if int(code) not in table]
    if unknown:
        share = np.isin(codes[valid], unknown).mean()
        raise UserError(
            f"{where}: expected class codes out of {' '.join(map(str, table))}, got "
            f"{' '.join(map(str, unknown[:8]))} in {100 * share:.3g} % of the pixels"
        )
    indices = np.array([table.get(int(code), IGNORE) for code in found], np.uint8)[position].reshape(codes.shape)
    indices[~valid] = IGNORE
    return indices


def _tiff(path: Path, crs: str | None) -> tuple[NDArray[Any], Bools]:
    header = read_header(path)
    own = crs_text(header.crs)
    if None not in (crs, own) and crs != own:
        raise UserError(f"{path}: expected the image's coordinate system {crs}, got {own}")
    if len(header.descriptions) != 1:
        raise UserError(f"{path}: expected one band of class codes, got {len(header.descriptions)}")
    if header.shape[0] * header.shape[1] * header.dtype.itemsize > _MAX_BYTES:
        raise UserError(f"{path}: expected labels of at most {_MAX_BYTES >> 20} MiB, got {header.shape} pixels")
    pixels, valid = read_window(header, [1], 0, 0, *header.shape)
    return pixels[0], valid[0]


def _png(path: Path) -> tuple[NDArray[Any], Bools]:
    pixels = read_png(path)
    colours = pixels[: {2: 1, 4: 3}.get(len(pixels), len(pixels))]  # without alpha
    if (colours != colours[:1]).any():
        raise UserError(f"{path}: expected a grey picture of class codes, got colours")
    return colours[0], np.ones(colours[0].shape, bool)
