# SPDX-License-Identifier: Apache-2.0
"""EuroSAT, multispectral: 27,000 Sentinel-2 L1C patches of 64 x 64 pixels in 10 classes.

The files hold 13 bands without names, and B8A is the last of them, not the ninth: dropping "the eleventh band" drops
B11 and keeps the cirrus band. Here bands go by name. The split has the published sizes and is a committed list.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.datasets.base import Labels, PatchDataset, Transforms, all_there, chosen, filled
from spectralgpt.data.datasets.images import open_image, whole
from spectralgpt.data.datasets.tables import packed
from spectralgpt.data.record import Record
from spectralgpt.data.splits import EUROSAT_COUNTS, eurosat
from spectralgpt.errors import UserError

FILE_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
_FOLDERS = (".", "tif", "EuroSAT_MS", "EuroSATallBands", "ds/images/remote_sensing/otherDatasets/sentinel_2/tif")


class EuroSAT(PatchDataset):
    """`<root>/<Class>/<Class>_<n>.tif`; `root` may also be the folder the archive was unpacked in."""

    title = "EuroSAT"
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "all")
    task = "single_label"
    classes = tuple(EUROSAT_COUNTS)
    colours = (
        "#f4d35e",  # fields yellow, woods and meadows green, what is built grey to red, water blue
        "#1b6b34",
        "#a6c86b",
        "#6f6f78",
        "#9b4f96",
        "#5fae57",
        "#e08a2c",
        "#d1352b",
        "#5fa8dc",
        "#1f4e9e",
    )

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        bands: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        *,
        fraction: float = 1.0,
        seed: int = 0,
        partial: bool = False,
    ) -> None:
        """Lists the split's images.

        Args:
            root: the archive.
            split: "train", "val", "test" (16200, 5400, 5400 images) or "all".
            bands: names, in this order; the 12 of the published models by default.
            transforms: applied to every sample.
            fraction: of the split, the same share of every class.
            seed: of that choice.
            partial: use the images that are there, where some of the split are missing.

        Raises:
            UserError: the folder, the split or a band is wrong, or images are missing.
        """
        super().__init__(root, split, SENTINEL2, bands or SENTINEL2_12, transforms)
        folder = _folder(self.root)
        if folder is None:
            raise UserError(f"{root}: expected the folders {', '.join(self.classes)}, found none of them")
        self._folder = folder
        there = {
            f"{name}/{entry}"
            for name in self.classes
            if (folder / name).is_dir()
            for entry in os.listdir(folder / name)
        }
        listed = [path for path, part in eurosat().items() if split in (part, "all")]
        all_there(self, [path for path in listed if path not in there], len(listed), partial)
        names = [path for path in listed if path in there]
        filled(self, len(names), folder)
        labels = np.array([self.classes.index(name.split("/")[0]) for name in names], np.int64)
        keep = chosen(names, fraction, seed, labels)
        self._names = packed(names) if keep is None else packed(names)[keep]
        self._labels = labels if keep is None else labels[keep]

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether several class folders are there."""
        folder = _folder(root)
        return folder is not None and sum((folder / name).is_dir() for name in cls.classes) > 1

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def name(self, index: int) -> str:
        """`<Class>/<Class>_<n>.tif`."""
        return str(self._names[index].decode())

    def labels(self) -> Labels:
        """Class indices, `(n,)`."""
        return self._labels

    def read(self, index: int) -> Record:
        """The image and its class."""
        name = self.name(index)
        scene = open_image(self._folder / name, SENTINEL2, self.bands, FILE_ORDER, name)
        return whole(scene, label=int(self._labels[index]))


def _folder(root: Path) -> Path | None:
    for name in _FOLDERS:
        if any((root / name / folder).is_dir() for folder in EUROSAT_COUNTS):
            return root / name
    return None
