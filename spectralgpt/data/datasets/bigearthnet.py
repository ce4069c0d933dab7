# SPDX-License-Identifier: Apache-2.0
"""BigEarthNet, Sentinel-2 L2A: 590,326 patches (version 1) or 480,038 (version 2) of 120 x 120 pixels at 10 m.

A patch is a folder of 12 one-band files at 10, 20 and 60 m, put on the 10 m grid here; or one merged file of 12
bands, as the published pretraining read. The version follows from the patches' names. Labels are the 19 classes;
patches of version 1 whose labels all fall away between 43 and 19 classes are dropped, and counted in `notes`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.datasets import corine
from spectralgpt.data.datasets.base import Labels, PatchDataset, Transforms, all_there, chosen, filled
from spectralgpt.data.datasets.bigearthnet_metadata import Row, read_metadata
from spectralgpt.data.datasets.images import crs_text, existing, open_image, read_mask, whole
from spectralgpt.data.datasets.tables import first_existing, packed, read_json, read_lines
from spectralgpt.data.record import Record
from spectralgpt.data.scene import Scene
from spectralgpt.data.splits import part
from spectralgpt.errors import UserError

_FOLDERS = ("BigEarthNet-S2", "BigEarthNet-v1.0", "BigEarthNet-S2-v1.0", "S2", ".")
_ACQUISITION = r"S2[ABC]_MSIL2A_\d{8}T\d{6}"
_V1_PATCH = re.compile(_ACQUISITION + r"_\d+_\d+")
_V2_TILE = re.compile(_ACQUISITION + r"_N\d{4}_R\d{3}_T\w{5}")
_V2_PATCH = re.compile(_V2_TILE.pattern + r"_\d+_\d+")
_ANY = re.compile("|".join(f"(?:{known.pattern})" for known in (_V1_PATCH, _V2_PATCH, _V2_TILE)))


class BigEarthNet(PatchDataset):
    """Version 1 or 2 in the layout of its archive, or with merged files.

    Attributes:
        version: 1 or 2.
    """

    title = "BigEarthNet"
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "all")
    classes = corine.CLASSES
    colours = corine.COLOURS

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        bands: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        *,
        task: Literal["multi_label", "segmentation", "none"] = "multi_label",
        split_by: Literal["official", "published"] = "official",
        metadata: str | Path | None = None,
        band_order: Sequence[str] = SENTINEL2_12,
        fraction: float = 1.0,
        seed: int = 0,
        partial: bool = False,
    ) -> None:
        """Lists the split's patches.

        Args:
            root: the folder with BigEarthNet-S2 or BigEarthNet-v1.0, or that folder itself.
            split: "train", "val", "test" or "all".
            bands: names, in this order; all 12 by default.
            transforms: applied to every sample.
            task: "multi_label"; "segmentation" with the reference maps of version 2; "none" reads no labels.
            split_by: "official": version 2's metadata, for version 1 the lists train.csv, val.csv and test.csv
                beside the patches; "published": 60 %, 20 % and 20 % of all patches by a hash of their names.
            metadata: version 2's table, where it does not lie in `root` as metadata.parquet, .csv or .json.
            band_order: of merged files whose bands carry no names.
            fraction: of the split, before patches without labels are dropped.
            seed: of that choice.
            partial: use the patches that are there, where some of the split are missing.

        Raises:
            UserError: the folder, a list, a label or a band is wrong, or patches are missing.
        """
        super().__init__(root, split, SENTINEL2, bands or SENTINEL2_12, transforms)
        self.task = task
        self._folder, places = _scan(self.root)
        self.version = _version(self._folder, places)
        self._band_order = tuple(band_order)
        if task == "segmentation" and self.version == 1:
            raise UserError(f"{root}: expected BigEarthNet version 2 for segmentation, got version 1 without maps")
        needs_rows = self.version == 2 and (task == "multi_label" or split_by == "official")
        rows = read_metadata(self.root, metadata) if needs_rows else {}
        listed = self._listed(split_by, rows, places)
        all_there(self, [name for name in listed if name not in places], len(listed), partial)
        names = [name for name in listed if name in places]
        keep = chosen(names, fraction, seed)
        names = names if keep is None else [names[index] for index in keep]
        self._labels: NDArray[np.uint8] | None = None
        if task == "multi_label":
            names, self._labels = self._labelled(names, rows, places)
        filled(self, len(names), self._folder)
        self._places = packed([places[name] for name in names])

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether patch or tile folders are there."""
        return _patch_folder(root) is not None

    def __len__(self) -> int:
        """Number of patches."""
        return len(self._places)

    def name(self, index: int) -> str:
        """The patch's id."""
        return self._place(index).rpartition("/")[2]

    def labels(self) -> Labels | None:
        """0 and 1 of every class, `(n, 19)`."""
        return self._labels

    def read(self, index: int) -> Record:
        """The patch on the 10 m grid, with its classes or its map."""
        place, name = self._place(index), self.name(index)
        folder = existing(self._folder / place)
        merged = folder / f"{name}.tif"
        if merged.exists():
            scene = open_image(merged, SENTINEL2, self.bands, self._band_order, name)
        else:
            scene = Scene.open(folder, SENTINEL2, self.bands, name=name)
        mask = None
        if self.task == "segmentation":
            maps = self._folder.parent / "Reference_Maps"
            mask = read_mask(maps / place / f"{name}_reference_map.tif", scene.shape, corine.CODES, crs_text(scene.crs))
        return whole(scene, None if self._labels is None else self._labels[index], mask)

    def _place(self, index: int) -> str:
        return str(self._places[index].decode())

    def _listed(self, split_by: str, rows: dict[str, Row], places: dict[str, str]) -> list[str]:
        """Names of the split, sorted; of version 2 those the metadata knows, where it is read."""
        if split_by not in ("official", "published"):
            raise UserError(f"split_by: expected official or published, got {split_by!r}")
        known = rows or places
        if self.split == "all":
            return sorted(known)
        if split_by == "published":
            return sorted(name for name in known if part(name) == self.split)
        if self.version == 2:
            official = {"val": "validation"}.get(self.split, self.split)
            return sorted(name for name, row in rows.items() if row.split in (official, self.split))
        near = [folder / f"{self.split}.csv" for folder in (self.root, self.root / "splits", self._folder.parent)]
        what = "the official list of version 1 there (or split_by=published)"
        return sorted(set(read_lines(first_existing(near, what))))

    def _labelled(
        self, names: list[str], rows: dict[str, Row], places: dict[str, str]
    ) -> tuple[list[str], NDArray[np.uint8]]:
        """The patches that have labels, and these as 0 and 1."""
        kept: list[str] = []
        labels = np.zeros((len(names), len(self.classes)), np.uint8)
        for name in tqdm(names, "labels", delay=2, leave=False):
            if self.version == 2:
                if name not in rows:
                    raise UserError(f"{self.root}: expected labels of {name} in the metadata, found none")
                texts, where = rows[name].labels, f"metadata of {name}"
            else:
                path = self._folder / places[name] / f"{name}_labels_metadata.json"
                texts, where = _json_labels(path), str(path)
            unknown = [text for text in texts if text not in corine.NAMES]
            if unknown:
                raise UserError(f"{where}: expected CORINE class names as labels, got {unknown[0]!r}")
            indices = [index for text in texts if (index := corine.NAMES[text]) is not None]
            if indices:
                labels[len(kept), indices] = 1
                kept.append(name)
        if len(kept) < len(names):
            self.notes.append(f"{len(names) - len(kept)} of {len(names)} patches left out: none of the 19 classes")
        return kept, labels[: len(kept)].copy()


def _patch_folder(root: Path) -> Path | None:
    for name in _FOLDERS:
        if (folder := root / name).is_dir():
            with os.scandir(folder) as entries:
                if any(_ANY.fullmatch(entry.name) for entry in entries):
                    return folder
    return None


def _scan(root: Path) -> tuple[Path, dict[str, str]]:
    """The folder of all patches, and each patch's own folder below it."""
    folder = _patch_folder(root)
    if folder is None:
        raise UserError(f"{root}: expected patch folders such as BigEarthNet-S2/S2A_MSIL2A_..., found none")
    places: dict[str, str] = {}
    for name in os.listdir(folder):
        if _V1_PATCH.fullmatch(name) or _V2_PATCH.fullmatch(name):
            places[name] = name
        elif _V2_TILE.fullmatch(name):
            for patch in filter(_V2_PATCH.fullmatch, os.listdir(folder / name)):
                places[patch] = f"{name}/{patch}"
    return folder, places


def _version(folder: Path, places: dict[str, str]) -> int:
    versions = {2 if _V2_PATCH.fullmatch(name) else 1 for name in places}
    if len(versions) != 1:
        raise UserError(f"{folder}: expected patches of one version, got {'both' if versions else 'none'}")
    return versions.pop()


def _json_labels(path: Path) -> list[str]:
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f'{path}: expected a list of names under "labels"')
    return labels
