# SPDX-License-Identifier: Apache-2.0
"""Users' own images: GeoTIFFs or folders of bands below one folder, with labels in a CSV file or label rasters.

Which files are images, and which raster labels which, are said by two patterns with one `*` each: what it stands for
in an image's path replaces it in the label's. "images/*.tif" with "labels/*.tif" and "*_image.tif" with "*_mask.tif"
both serve. Without a split column, a hash of the place an image shows decides, so that several dates of one place
stay on one side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from spectralgpt.data.bands import SensorCard, sensor_card
from spectralgpt.data.datasets.base import Labels, PatchDataset, Transforms, chosen, filled, unique
from spectralgpt.data.datasets.images import crs_text, existing, read_codes, read_mask, whole
from spectralgpt.data.datasets.tables import packed, read_table
from spectralgpt.data.discover import find_scenes
from spectralgpt.data.paths import inside
from spectralgpt.data.places import file_source
from spectralgpt.data.record import IGNORE, Record
from spectralgpt.data.scene import Scene
from spectralgpt.data.splits import part
from spectralgpt.errors import UserError

_SHARES = {"train": 0.8, "val": 0.2, "test": 0.0}


class Folder(PatchDataset):
    """Images with, per image, nothing, one label, several labels, or a label raster."""

    title = "images"
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "all")

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        bands: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        *,
        sensor: str = "sentinel2",
        band_order: Sequence[str] | None = None,
        images: str = "*",
        masks: str | None = None,
        table: str | None = None,
        classes: Sequence[str] | None = None,
        codes: Sequence[int] | None = None,
        colours: Sequence[str] = (),
        ignore: Sequence[int] = (),
        shares: Mapping[str, float] = _SHARES,
        fraction: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Lists the split's images.

        Args:
            root: the folder.
            split: "train", "val", "test" or "all".
            bands: names, in this order; by default those of the sensor's groups that the files hold by `band_order`.
            transforms: applied to every sample.
            sensor: name of the sensor card.
            band_order: what the bands of files without band names are, "-" for one to pass over.
            images: pattern of the images' paths below `root`.
            masks: pattern of their label rasters.
            table: a CSV file below `root` with the columns path, and as wished label (several separated by ";"),
                mask and split; lists the images instead of `images`.
            classes: names; found in the table, or in all label rasters, by default.
            codes: what stands for each class in label rasters; 0, 1, ... by default, or what is found there.
            colours: "#rrggbb" of each class, for pictures and maps.
            ignore: codes of pixels without a label.
            shares: of the splits, where no split column says.
            fraction: of the split, the same share of every class where images have one label.
            seed: of splits and fraction.

        Raises:
            UserError: the folder, a pattern, the table or a band is wrong, or the split is empty.
        """
        card = sensor_card(sensor)
        super().__init__(root, split, card, None, transforms)
        self._sensor, self._band_order = card, None if band_order is None else tuple(band_order)
        names, columns = self._listed(images, masks, table)
        filled(self, len(names), self.root)
        self.card = self._choose_bands(inside(self.root, names[0]), bands)
        self._masks = columns.get("mask")
        self._labels: Labels | None = None
        if self._masks is not None:
            self.task = "segmentation"
            self.classes, self._codes = self._mask_classes(classes, codes, ignore)
        elif "label" in columns:
            self.classes, self._labels = _label_classes(self.root / str(table), columns["label"], classes)
            self.task = "single_label" if self._labels.ndim == 1 else "multi_label"
        if len(colours) not in (0, len(self.classes)):
            raise UserError(f"colours: expected one for each of {len(self.classes)} classes, got {len(colours)}")
        self.colours = tuple(colours)
        rows = np.flatnonzero([side == split for side in self._sides(names, columns, shares, seed)])
        if not len(rows):
            raise UserError(
                f"{self.root}: expected images for the {split} split, found none among {len(names)}; give the table a "
                "column split, or other shares or another seed"
            )
        labels = None if self._labels is None else self._labels[rows]
        keep = chosen([names[row] for row in rows], fraction, seed, labels)
        rows = rows if keep is None else rows[keep]
        self._names = packed(names)[rows]
        self._masks = None if self._masks is None else [self._masks[row] for row in rows]
        self._labels = None if self._labels is None else self._labels[rows]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def name(self, index: int) -> str:
        """The image's path below the root."""
        return str(self._names[index].decode())

    def labels(self) -> Labels | None:
        """Class indices, or 0 and 1 of every class."""
        return self._labels

    def read(self, index: int) -> Record:
        """The image with its label or label raster."""
        scene = self._scene(self.name(index))
        mask = None
        if self._masks is not None:
            mask = read_mask(inside(self.root, self._masks[index]), scene.shape, self._codes, crs_text(scene.crs))
        label = None if self._labels is None else self._labels[index]
        return whole(scene, int(label) if label is not None and label.ndim == 0 else label, mask)

    def _scene(self, name: str) -> Scene:
        path = existing(inside(self.root, name))
        return Scene.open(path, self._sensor if self._sensor.bands else self.card, self.bands, self._band_order, name)

    def _listed(self, images: str, masks: str | None, table: str | None) -> tuple[list[str], dict[str, list[str]]]:
        """Paths of all images below the root, and columns beside them."""
        if table is not None:
            columns = read_table(inside(self.root, table), ("path",), ("label", "mask", "split"))
            names = columns.pop("path")
            unique(names, self.root / table)
        else:
            start = self.root / images.partition("*")[0].rpartition("/")[0]
            found = [path.relative_to(self.root).as_posix() for path in find_scenes(start, self._sensor)]
            names, columns = [name for name in found if _star(images).fullmatch(name)], {}
        if masks is not None:
            columns["mask"] = [_paired(name, images, masks) for name in names]
            if table is None:  # "*.tif" also finds the "*_mask.tif"
                labels = set(columns["mask"])
                columns["mask"] = [_paired(name, images, masks) for name in names if name not in labels]
                names = [name for name in names if name not in labels]
        return names, columns

    def _choose_bands(self, first: Path, bands: Sequence[str] | None) -> SensorCard:
        card = self._sensor
        if not card.bands:  # a spectrometer: the first file's own bands, which every other file must have
            card = file_source(existing(first), card, None).card
        if bands is None:
            bands = tuple(dict.fromkeys(name for group in card.groups for name in group))
            if self._band_order is not None:
                there = {card.canonical(name) for name in self._band_order if name != "-"}
                bands = tuple(name for name in bands if name in there)
        return card.select(bands)

    def _mask_classes(
        self, classes: Sequence[str] | None, codes: Sequence[int] | None, ignore: Sequence[int]
    ) -> tuple[tuple[str, ...], dict[int, int]]:
        """Class names, and the index of each code."""
        if codes is None and classes is not None:
            codes = range(len(classes))
        elif codes is None:
            found: set[int] = set()
            for name in tqdm(self._masks or (), "classes", delay=2, leave=False):
                raw, valid = read_codes(inside(self.root, name))
                found.update(np.unique(raw[valid]).tolist())
            codes = sorted(found - set(ignore))
        names = tuple(map(str, codes)) if classes is None else tuple(classes)
        if len(names) != len(codes) or not 0 < len(names) < IGNORE:
            raise UserError(f"classes: expected a name for each of {len(codes)} codes, at most 254, got {len(names)}")
        return names, {code: index for index, code in enumerate(codes)} | dict.fromkeys(ignore, IGNORE)

    def _sides(
        self, names: list[str], columns: dict[str, list[str]], shares: Mapping[str, float], seed: int
    ) -> list[str]:
        """The split of each image."""
        if self.split == "all":
            return ["all"] * len(names)
        if "split" in columns:
            wrong = sorted(set(columns["split"]) - set(self.splits))
            if wrong:
                raise UserError(f"column split: expected {', '.join(self.splits)}, got {wrong[0]!r}")
            return columns["split"]
        if set(shares) - set(_SHARES) or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
            raise UserError(f"shares: expected shares of train, val and test that add up to 1, got {dict(shares)}")
        return [part(self._place(name), shares, seed) for name in tqdm(names, "places", delay=2, leave=False)]

    def _place(self, name: str) -> str:
        """What an image shows, in words, or its name without georeference."""
        try:
            scene = self._scene(name)
        except UserError:  # reading it says what is wrong
            return name
        if scene.transform is None:
            return name
        return f"{crs_text(scene.crs)} {tuple(scene.transform)[:6]} {scene.shape}"


def _star(pattern: str) -> re.Pattern[str]:
    if pattern.count("*") != 1:
        raise UserError(f"pattern {pattern!r}: expected one * in it")
    return re.compile("(.+)".join(map(re.escape, pattern.split("*"))))


def _paired(name: str, images: str, masks: str) -> str:
    """The path of the label raster of an image."""
    found = _star(images).fullmatch(name)
    if found is None:
        raise UserError(f"{name}: expected a path as {images} says; mend the pattern or the table")
    _star(masks)
    return masks.replace("*", found[1])


def _label_classes(table: Path, texts: Sequence[str], classes: Sequence[str] | None) -> tuple[tuple[str, ...], Labels]:
    """Class names, and indices, or 0 and 1 of every class where a row has several labels."""
    rows = [[name.strip() for name in text.split(";") if name.strip()] for text in texts]
    names = tuple(sorted({name for row in rows for name in row})) if classes is None else tuple(classes)
    index = {name: number for number, name in enumerate(names)}
    for number, row in enumerate(rows, start=1):
        unknown = [name for name in row if name not in index]
        if unknown or not row:
            got = repr(unknown[0]) if unknown else "nothing"
            raise UserError(f"{table}, row {number}, column label: expected {', '.join(names[:20])}, got {got}")
    if all(len(row) == 1 for row in rows):
        return names, np.array([index[row[0]] for row in rows], np.int64)
    labels: NDArray[np.uint8] = np.zeros((len(rows), len(names)), np.uint8)
    for number, row in enumerate(rows):
        labels[number, [index[name] for name in row]] = 1
    return names, labels
