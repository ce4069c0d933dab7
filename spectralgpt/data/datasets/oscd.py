# SPDX-License-Identifier: Apache-2.0
"""OSCD, the Onera change detection set: 24 cities, two Sentinel-2 L1C dates each, and a map of what changed.

Where the two dates do not cover the same ground, both are cut to the area they share: by their georeference, to
the nearest pixel, or from the upper left corner where there is none. `notes` names every city this happened to. The
change map lies on the first date. Archives come as `images/<city>` with `train_labels/<city>` and
`test_labels/<city>`, or with the maps in the city's own folder; both are read. There is no official validation split:
`cities` takes some from training, and names the folders of other archives in this layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.datasets.base import PatchDataset, Transforms, all_there, filled, unique
from spectralgpt.data.datasets.images import crs_text, no_data, read_codes, remap
from spectralgpt.data.paths import inside
from spectralgpt.data.raster import Bools, Pixels
from spectralgpt.data.record import Record, extremes
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError

TRAIN = (
    "abudhabi", "aguasclaras", "beihai", "beirut", "bercy", "bordeaux", "cupertino", "hongkong", "mumbai", "nantes",
    "paris", "pisa", "rennes", "saclay_e",
)  # fmt: skip
TEST = (
    "brasilia", "chongqing", "dubai", "lasvegas", "milano", "montpellier", "norcia", "rio", "saclay_w", "valencia",
)  # fmt: skip
_CITIES: Mapping[str, Sequence[str]] = {"train": TRAIN, "test": TEST}
_CODES: tuple[dict[int, int], ...] = ({1: 0, 2: 1}, {0: 0, 255: 1})  # GeoTIFF and PNG of the archive


class _Window(NamedTuple):
    city: int
    row: int
    column: int
    height: int
    width: int


@dataclass(frozen=True)
class _City:
    """Two scenes, the upper left pixel of their common area in each, its size, and where the map may be."""

    name: str
    scenes: tuple[Scene, Scene]
    origins: tuple[tuple[int, int], tuple[int, int]]
    shape: tuple[int, int]
    maps: tuple[Path, ...]

    def read(self, row: int, column: int, height: int, width: int) -> tuple[Pixels, Bools | None]:
        """Both dates, `(2, C, h, w)`, of a window of the common area."""
        parts = [
            scene.read_raw(top + row, left + column, height, width)
            for scene, (top, left) in zip(self.scenes, self.origins, strict=True)
        ]
        pixels = np.stack([pixels for pixels, _ in parts])
        if all(valid is None for _, valid in parts):
            return pixels, None
        return pixels, np.stack([np.ones(pixels.shape[1:], bool) if valid is None else valid for _, valid in parts])


class OSCD(PatchDataset):
    """Pairs of whole cities, or of windows of them; masks hold 0 and 1 for change."""

    title = "OSCD"
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "all")
    task = "change"
    classes = ("no change", "change")
    colours = ("#202020", "#ffffff")

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        bands: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        *,
        window: int | None = None,
        stride: int | None = None,
        cities: Mapping[str, Sequence[str]] = _CITIES,
        partial: bool = False,
    ) -> None:
        """Opens the split's cities.

        Args:
            root: the archive.
            split: "train" (14 cities), "test" (10), "all", or what `cities` names.
            bands: names, in this order; the 12 of the published models by default.
            transforms: applied to every sample.
            window: rows and columns of the windows to cut cities into; whole cities by default.
            stride: from one window to the next, `window` by default; the last ones are moved back to the border,
                so that no pixel is lost.
            cities: names of the folders of each split.
            partial: use the cities that are there, where some of the split are missing.

        Raises:
            UserError: the folder, a band or an image is wrong, or cities are missing.
        """
        super().__init__(root, split, SENTINEL2, bands or SENTINEL2_12, transforms)
        for key, size in (("window", window), ("stride", stride)):
            if size is not None and size < 1:
                raise UserError(f"{key}: expected at least 1 pixel, got {size}")
        names = _names(cities, split)
        for name in names:
            inside(self.root, name)  # a recipe from elsewhere may name anything
        folders = {name: folder for name in names if (folder := _city_folder(self.root, name)) is not None}
        missing = [name for name in names if name not in folders]
        all_there(self, missing, len(names), partial)
        filled(self, len(folders), self.root)
        self._cities = [self._open(name, folder) for name, folder in folders.items()]
        self._windows = [
            _Window(number, row, column, height, width)
            for number, city in enumerate(self._cities)
            for row, height in _starts(city, 0, window, stride)
            for column, width in _starts(city, 1, window, stride)
        ]
        self._is_cut = window is not None
        self._extremes: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether a folder of one of the cities is there."""
        return any(_city_folder(root, name) is not None for name in TRAIN + TEST)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._windows)

    def name(self, index: int) -> str:
        """The city, and the window's first row and column where cities are cut."""
        window = self._windows[index]
        city = self._cities[window.city].name
        return f"{city}/{window.row}_{window.column}" if self._is_cut else city

    def read(self, index: int) -> Record:
        """Both dates `(2, C, H, W)` and the change map; extremes are those of the whole common area."""
        number, row, column, height, width = self._windows[index]
        city = self._cities[number]
        pixels, valid = city.read(row, column, height, width)
        if valid is not None and not valid.any():
            raise no_data(city.scenes[0].path)
        if number not in self._extremes:
            self._extremes[number] = extremes(*city.read(0, 0, *city.shape))
        low, high = self._extremes[number]
        scene, (top, left) = city.scenes[0], city.origins[0]
        transform = None
        if scene.transform is not None:
            a, b, _, d, e, _ = tuple(scene.transform)[:6]
            x, y = _moved(scene.transform, top + row, left + column)
            transform = (a, b, x, d, e, y)
        mask = _change_map(city)[row : row + height, column : column + width]
        return Record(self.name(index), pixels, valid, low, high, None, mask.copy(), crs_text(scene.crs), transform)

    def _open(self, name: str, folder: Path) -> _City:
        before, after = (Scene.open(_date_folder(folder, date), SENTINEL2, self.bands, name=name) for date in (1, 2))
        _in_order(folder / "dates.txt")
        origins, shape, how = _common_area(before, after)
        if how:
            self.notes.append(f"{name}: dates of {before.shape} and {after.shape} pixels cut to {shape}, {how}")
        labels = [
            path
            for pattern in ("train_labels", "test_labels", "*Train Labels", "*Test Labels")
            for path in self.root.glob(pattern)
        ]
        places = [folder / "cm", *(path / name / "cm" for path in labels)]
        maps = tuple(place / file for place in places for file in (f"{name}-cm.tif", "cm.tif", "cm.png"))
        return _City(name, (before, after), origins, shape, maps)


def _names(cities: Mapping[str, Sequence[str]], split: str) -> list[str]:
    """The cities of a split; no city may be in two of them."""
    if not isinstance(cities, Mapping) or not set(cities) <= {"train", "val", "test"}:
        raise UserError(f"cities: expected lists of names under train, val and test, got {cities!r}")
    listed = [name for names in cities.values() for name in names]
    unique(listed, "cities")
    if split != "all" and split not in cities:
        raise UserError(
            f"split {split!r}: expected one of {', '.join(cities)}; option cities={{train: [...], val: [...]}} "
            "takes cities from training"
        )
    return listed if split == "all" else list(cities[split])


def _city_folder(root: Path, name: str) -> Path | None:
    parents = [root, root / "images", *root.glob("*Images")]
    return next((parent / name for parent in parents if _has_dates(parent / name)), None)


def _has_dates(folder: Path) -> bool:
    return (folder / "imgs_1_rect").is_dir() or (folder / "imgs_1").is_dir()


def _date_folder(folder: Path, date: int) -> Path:
    rectified = folder / f"imgs_{date}_rect"
    return rectified if rectified.is_dir() else folder / f"imgs_{date}"


def _in_order(path: Path) -> None:
    """Refuses a pair whose second date is the earlier one, where the archive's file of dates is there to tell."""
    dates = re.findall(
        r"^date_\d\s*:\s*(\d{8})\s*$", path.read_text("utf-8", "replace") if path.is_file() else "", re.M
    )
    if dates != sorted(dates):
        raise UserError(f"{path}: expected the earlier date as imgs_1, got {' then '.join(dates)}; swap the folders")


def _common_area(before: Scene, after: Scene) -> tuple[tuple[tuple[int, int], tuple[int, int]], tuple[int, int], str]:
    """Where the shared pixels begin in each date, how many they are, and how they were found if not trivially."""
    down = right = 0
    how = "from the upper left corner"
    if before.transform is not None and after.transform is not None:
        if before.crs != after.crs:
            raise UserError(
                f"{after.path}: expected the coordinate system of the first date, {before.crs}, got {after.crs}"
            )
        steps = (
            (tuple(before.transform)[:2], tuple(before.transform)[3:5]),
            (tuple(after.transform)[:2], tuple(after.transform)[3:5]),
        )
        if not np.allclose(*steps, rtol=1e-4, atol=0):
            raise UserError(
                f"{after.path}: expected pixels of the first date's size, got another; resample one of them"
            )
        corner = _moved(after.transform, 0, 0)
        x, y = _moved(~before.transform, corner[1], corner[0])
        down, right = round(y), round(x)
        how = f"by georeference, the second begins {y:.2f} rows and {x:.2f} columns later"
    first, second = (max(down, 0), max(right, 0)), (max(-down, 0), max(-right, 0))
    shape = (
        min(before.shape[0] - first[0], after.shape[0] - second[0]),
        min(before.shape[1] - first[1], after.shape[1] - second[1]),
    )
    if min(shape) < 1:
        raise UserError(f"{after.path}: expected two dates of one place, they share no pixel")
    is_trivial = before.shape == after.shape == shape
    return (first, second), shape, "" if is_trivial else how


def _starts(city: _City, axis: int, window: int | None, stride: int | None) -> list[tuple[int, int]]:
    """First pixel and length of the windows along an axis."""
    size = city.shape[axis]
    if window is None:
        return [(0, size)]
    if size < window:
        raise UserError(
            f"{city.name}: expected at least {window} x {window} pixels, got {city.shape}; choose a smaller window"
        )
    return [(start, window) for start in sorted({*range(0, size - window, stride or window), size - window})]


def _change_map(city: _City) -> NDArray[np.uint8]:
    """0 and 1 on the common area."""
    path = next((path for path in city.maps if path.exists()), None)
    if path is None:
        raise UserError(f"{city.maps[0].parent}: expected a change map {city.maps[0].name} or cm.png, found none")
    codes, valid = read_codes(path, crs_text(city.scenes[0].crs))
    found = set(np.unique(codes[valid]).tolist())
    table = next((table for table in _CODES if found <= table.keys()), None)
    if table is None:
        raise UserError(f"{path}: expected 1 and 2, or 0 and 255, for unchanged and changed, got {sorted(found)[:8]}")
    if codes.shape not in (city.scenes[0].shape, city.shape):
        raise UserError(f"{path}: expected the first date's {city.scenes[0].shape} pixels, got {codes.shape}")
    changed = remap(codes, table, path, valid)
    if codes.shape == city.shape:
        return changed
    (top, left), (height, width) = city.origins[0], city.shape
    return changed[top : top + height, left : left + width]


def _moved(transform: Any, row: float, column: float) -> tuple[float, float]:  # noqa: ANN401 - rasterio's class
    """Coordinates of a pixel's corner."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * column + b * row + c, d * column + e * row + f
