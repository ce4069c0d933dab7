# SPDX-License-Identifier: Apache-2.0
"""fMoW-Sentinel: 712,874 Sentinel-2 images of 62 kinds of places, 13 bands, every image of its own size.

A CSV lists the images. Its paths may start with the archive's own folder name or not, so both the folder that
holds `fmow-sentinel` and that folder itself serve as root; where the CSV has no `image_path`, as in the original
release, the path follows from category, location and image.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.datasets.base import Labels, PatchDataset, Transforms, all_there, chosen, filled
from spectralgpt.data.datasets.images import open_image, whole
from spectralgpt.data.datasets.tables import first_existing, packed, read_table
from spectralgpt.data.paths import inside, local
from spectralgpt.data.raster import read_header
from spectralgpt.data.record import Record
from spectralgpt.errors import UserError

FILE_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
_ARCHIVE = "fmow-sentinel"
_LISTS = {
    "train": ("train.csv", "train_62classes.csv"),
    "val": ("val.csv", "val_62classes.csv"),
    "test": ("test_gt.csv", "test.csv", "test_62classes.csv"),
}
_CLASSES = """
    airport airport_hangar airport_terminal amusement_park aquaculture archaeological_site barn border_checkpoint
    burial_site car_dealership construction_site crop_field dam debris_or_rubble educational_institution
    electric_substation factory_or_powerplant fire_station flooded_road fountain gas_station golf_course
    ground_transportation_station helipad hospital impoverished_settlement interchange lake_or_pond lighthouse
    military_facility multi-unit_residential nuclear_powerplant office_building oil_or_gas_facility park
    parking_lot_or_garage place_of_worship police_station port prison race_track railway_bridge
    recreational_facility road_bridge runway shipyard shopping_mall single-unit_residential smokestack solar_farm
    space_facility stadium storage_tank surface_mine swimming_pool toll_booth tower tunnel_opening waste_disposal
    water_treatment_facility wind_farm zoo
"""


class FMoWSentinel(PatchDataset):
    """`<root>/[fmow-sentinel/]<split>/<category>/<category>_<location>/<category>_<location>_<image>.tif`."""

    title = "fMoW-Sentinel"
    task = "single_label"
    classes = tuple(_CLASSES.split())

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        bands: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        *,
        csv: str | Path | None = None,
        years: Collection[int] | None = None,
        min_size: int = 0,
        fraction: float = 1.0,
        seed: int = 0,
        partial: bool = False,
    ) -> None:
        """Lists the split's images.

        Args:
            root: the folder that holds the CSV files or the folder fmow-sentinel.
            split: "train", "val" or "test" (the archive's test_gt).
            bands: names, in this order; the 12 of the published models by default.
            transforms: applied to every sample.
            csv: the list, where it has another name than the archive's.
            years: only images of these years.
            min_size: only images of at least so many rows and columns; opens every file once.
            fraction: of the split, the same share of every class.
            seed: of that choice.
            partial: use the images that are there; looks for every file once. Otherwise a missing one is an error
                when it is read.

        Raises:
            UserError: the folder, the list, a category or a band is wrong, or no image is left.
        """
        super().__init__(root, split, SENTINEL2, bands or SENTINEL2_12, transforms)
        names = [f"{prefix}{name}" for prefix in ("", f"{_ARCHIVE}/") for name in _LISTS[split]]
        self._list = (
            first_existing([self.root / name for name in names], "the list of images") if csv is None else local(csv)
        )
        paths, labels = self._rows(years)
        filled(self, len(paths), self._list)
        self._prefix = self._find_prefix(paths)
        if partial:
            there = np.array([self._path(path).exists() for path in tqdm(paths, "files", delay=2, leave=False)])
            all_there(self, _only(paths, labels, ~there)[0], len(paths), partial)
            paths, labels = _only(paths, labels, there)
        if min_size:
            large = np.array([self._size(path) >= min_size for path in tqdm(paths, "sizes", delay=2, leave=False)])
            self.notes.append(f"{(~large).sum()} of {len(paths)} images left out: smaller than {min_size}")
            paths, labels = _only(paths, labels, large)
        filled(self, len(paths), self._list)
        keep = chosen(paths, fraction, seed, labels)
        self._paths = packed(paths) if keep is None else packed(paths)[keep]
        self._labels = labels if keep is None else labels[keep]

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether there are a list with the archive's name and columns."""
        found = [root / part / name for part in (".", _ARCHIVE) for names in _LISTS.values() for name in names]
        heads = [path.open(errors="replace").readline(500) for path in found if path.is_file()]
        return any("location_id" in head and "category" in head for head in heads)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._paths)

    def name(self, index: int) -> str:
        """The path the list gives."""
        return str(self._paths[index].decode())

    def labels(self) -> Labels:
        """Class indices, `(n,)`."""
        return self._labels

    def read(self, index: int) -> Record:
        """The image and its class."""
        name = self.name(index)
        path = self._path(name)
        if not path.exists():
            raise UserError(f"{self._list}, image_path {name}: expected an image at {path}, no such file")
        return whole(open_image(path, SENTINEL2, self.bands, FILE_ORDER, name), label=int(self._labels[index]))

    def _rows(self, years: Collection[int] | None) -> tuple[list[str], Labels]:
        """Paths and classes, in the list's order."""
        time = () if years is None else ("timestamp",)
        table = read_table(self._list, ("category",), ("image_path", *time))
        if "image_path" not in table:
            parts = ("category", "location_id", "image_id")
            table = read_table(self._list, ("category",), (*parts[1:], *time))
            if not table.keys() >= set(parts):
                raise UserError(f"{self._list}: expected column image_path, or {', '.join(parts)} instead")
            table["image_path"] = list(map(self._derived, *(table[name] for name in parts)))
        unknown = sorted(set(table["category"]) - set(self.classes))
        if unknown:
            raise UserError(f"{self._list}, column category: expected one of the 62 classes, got {unknown[0]!r}")
        index = {name: number for number, name in enumerate(self.classes)}
        paths, labels = table["image_path"], np.array([index[name] for name in table["category"]], np.int64)
        if years is None:
            return paths, labels
        if "timestamp" not in table:
            raise UserError(f"{self._list}: expected column timestamp to choose years by, found none")
        texts = {str(year) for year in years}
        return _only(paths, labels, np.array([time[:4] in texts for time in table["timestamp"]], bool))

    def _derived(self, category: str, location: str, image: str) -> str:
        place = f"{category}_{location}"
        folder = "test_gt" if self.split == "test" else self.split
        return f"{_ARCHIVE}/{folder}/{category}/{place}/{place}_{image}.tif"

    def _find_prefix(self, paths: Sequence[str]) -> tuple[str, str]:
        """What to cut from the listed paths and what to put before them, so that they lie below the root."""
        for prefix in (("", ""), (f"{_ARCHIVE}/", ""), ("", f"{_ARCHIVE}/")):
            self._prefix = prefix
            if any(self._path(path).exists() for path in paths[:100]):
                return prefix
        raise UserError(f"{self._list}: expected its images below {self.root}, {paths[0]} is not there")

    def _path(self, name: str) -> Path:
        cut, put = self._prefix
        return inside(self.root, put + name.removeprefix(cut))

    def _size(self, name: str) -> int:
        return min(read_header(self._path(name)).shape)


def _only(paths: Sequence[str], labels: Labels, kept: NDArray[np.bool_]) -> tuple[list[str], Labels]:
    return [path for path, keep in zip(paths, kept, strict=True) if keep], labels[kept]
