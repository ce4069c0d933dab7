# SPDX-License-Identifier: Apache-2.0
"""Data sets made of random records: every task, sizes that vary, no-data, dates, types of pixels."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import rasterio

from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.record import IGNORE, Record, extremes
from spectralgpt.errors import UserError
from tests.data.rasters import UTM, noise, write

KINDS = ("none", "single_label", "multi_label", "segmentation", "change")


class Made(PatchDataset):
    """Records that are a function of (kind, index)."""

    def __init__(self, kind="none", count=7, bands=SENTINEL2_12, dtype=np.uint16, size=(20, 40), bad=(), split="train"):
        self.root, self.split, self.task = Path("/made"), split, kind
        self.card, self.transforms, self.notes = SENTINEL2.select(bands), None, []
        self.classes = tuple(f"class {i}" for i in range(5)) if kind != "none" else ()
        self._count, self._dtype, self._size, self._bad = count, dtype, size, set(bad)

    def __len__(self):
        return self._count

    def name(self, index):
        return f"folder/{index}.tif"

    def read(self, index):
        if index in self._bad:
            raise UserError(f"{self.root}/{self.name(index)}: damaged raster (made so)")
        return record(self.task, index, self.card.names, self._dtype, self._size, self.name(index))


def record(kind, index, bands, dtype=np.uint16, size=(20, 40), name="a"):
    """One record; every third has no-data, and of some bands only."""
    draw = np.random.default_rng((index, KINDS.index(kind)))
    height, width = draw.integers(*size, 2) if size[0] < size[1] else (size[0], size[0])
    dates = (2,) if kind == "change" else ()
    chosen = [SENTINEL2.names.index(band) for band in bands]
    every = draw.integers(1, 4000, (*dates, 13, height, width)) % (250 if np.dtype(dtype).itemsize == 1 else 5000) + 1
    there = np.ones(every.shape, bool)
    if index % 3 == 0:
        there[..., -1, : height // 2, 3:9] = False
        every[~there] = 0
    pixels, there = every[..., chosen, :, :].astype(dtype), there[..., chosen, :, :]
    valid = None if there.all() else there
    low, high = extremes(pixels, valid)
    label = {"single_label": index % 5, "multi_label": draw.integers(0, 2, 5).astype(np.uint8)}.get(kind)
    mask = None
    if kind in ("segmentation", "change"):
        mask = draw.integers(0, 5, (height, width)).astype(np.uint8)
        mask[:2] = IGNORE
    place = index % 2 == 0
    return Record(
        name=name,
        pixels=pixels,
        valid=valid,
        low=low,
        high=high,
        label=label,
        mask=mask,
        crs=f"EPSG:{32632 + index % 3}" if place else None,
        transform=(10.0, 0.0, 5e5 + index, 0.0, -10.0, 5e6) if place else None,
    )


class Files(PatchDataset):
    """Patches of one folder of GeoTIFFs, 13 bands each."""

    def __init__(self, root, bands=SENTINEL2_12, split="train"):
        self.root, self.split, self.card = Path(root), split, SENTINEL2.select(bands)
        self.transforms, self.notes = None, []
        self._paths = sorted(self.root.glob("*.tif"))

    def __len__(self):
        return len(self._paths)

    def name(self, index):
        return self._paths[index].name

    def read(self, index):
        from spectralgpt.data.datasets.images import open_image, whole

        scene = open_image(self._paths[index], SENTINEL2, self.bands, SENTINEL2.names, self.name(index))
        return whole(scene)


def write_files(folder, count, size=64):
    """`count` GeoTIFFs of 13 bands for `Files`."""
    for index in range(count):
        place = {**UTM, "transform": rasterio.Affine(10, 0, 5e5 + index, 0, -10, 5e6)}
        write(folder / f"{index:05}.tif", noise(13, size, size, seed=index), **place)
    return folder


def same(a: Record, b: Record) -> bool:
    """Equal to the bit, types and shapes too."""
    return all(_same(getattr(a, field.name), getattr(b, field.name)) for field in fields(Record))


def _same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b
