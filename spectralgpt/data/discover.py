# SPDX-License-Identifier: Apache-2.0
"""Finds scenes in folders. A file is a raster by its first bytes, never by its extension.

A product folder (Sentinel-2 SAFE, Landsat, HLS, EnMAP) is one scene, as is a folder with one file per band; every
other raster is a scene of its own. Sub-folders R10m, R20m, R60m (Sentinel-2 L2A) belong to the folder that holds
them, and a band found at several resolutions stays listed with all its files: which one is finest only their
headers tell.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from spectralgpt.data.bands import SENTINEL2, SensorCard
from spectralgpt.data.paths import local
from spectralgpt.errors import UserError

_SIGNATURES = {
    b"II*\x00": "GTiff",
    b"MM\x00*": "GTiff",
    b"II+\x00": "GTiff",
    b"MM\x00+": "GTiff",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
    b"ENVI\n": "ENVI",
    b"ENVI\r": "ENVI",
}
_RESOLUTION_FOLDER = re.compile(r"R\d+m")
_QUALITY_MASK = re.compile(r"(^|_)MSK_")
_PRODUCT_MARKERS = {
    "sentinel2": re.compile(r"MTD_MSIL(1C|2A)\.xml"),
    "landsat": re.compile(r"L[CO]0[89]_.*_MTL\.(txt|json)"),
    "hls": re.compile(r"HLS\.[LS]30\.T\w{5}\.\d{7}T\d{6}\.v2\.0\.B\w\w\.tif"),
    "enmap": re.compile(r"ENMAP.*-METADATA\.XML"),
}


def raster_driver(path: Path) -> str | None:
    """The GDAL driver for a file by its content, or None: it is no TIFF, JPEG 2000 file or ENVI header."""
    if not path.is_file():  # opening a pipe waits for a writer
        return None
    with path.open("rb", buffering=0) as file:
        start = file.read(12)
    return next((driver for magic, driver in _SIGNATURES.items() if start.startswith(magic)), None)


def band_files(folder: Path, card: SensorCard) -> dict[str, list[Path]]:
    """The one-band files of a folder by band name; previews, true-colour images and masks match none."""
    found: dict[str, list[Path]] = {}
    for path in _files(folder) + [p for sub in _resolution_folders(folder) for p in _files(sub)]:
        name = None if _QUALITY_MASK.search(path.name) else card.find(path.stem)
        if name is not None and raster_driver(path) is not None:
            found.setdefault(name, []).append(path)
    return found


def product_marker(folder: Path) -> tuple[str, Path] | None:
    """The kind of product that a folder is, and the file that says so; None where it is none known here."""
    for path in _files(folder):
        for kind, pattern in _PRODUCT_MARKERS.items():
            if pattern.fullmatch(path.name):
                return kind, path
    return None


def find_scenes(root: str | Path, card: SensorCard = SENTINEL2) -> list[Path]:
    """All scenes under a file or folder, sorted; hidden folders are left out.

    Raises:
        UserError: `root` does not exist, cannot be read, or holds no raster.
    """
    root = local(root)
    if not root.exists():
        raise UserError(f"{root}: no such file or folder")
    if root.is_file():
        return [root]
    try:
        scenes = list(_walk(root, card, set()))
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error})") from error
    if not scenes:
        raise UserError(f"{root}: expected GeoTIFF or JPEG 2000 files, found none in this folder or below it")
    return scenes


def _walk(folder: Path, card: SensorCard, seen: set[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in seen:  # a link back up
        return
    seen.add(real)
    if product_marker(folder) is not None:
        yield folder
        return
    children = _folders(folder)
    if len(band_files(folder, card)) > 1:
        yield folder
        children = [child for child in children if child not in _resolution_folders(folder)]
    else:
        yield from (path for path in _files(folder) if raster_driver(path) is not None)
    for child in children:
        yield from _walk(child, card, seen)


def _files(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_file() and entry.name[0] != ".")


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def _resolution_folders(folder: Path) -> list[Path]:
    return [child for child in _folders(folder) if _RESOLUTION_FOLDER.fullmatch(child.name)]
