# SPDX-License-Identifier: Apache-2.0
"""SegMunich: Sentinel-2 tiles of 128 x 128 pixels around Munich, 10 bands, 13 land cover classes.

The band order is B02 B03 B04 B08 B05 ..., as the pixels show: the fourth band is the near infrared at 10 m. (B01 for
it, as one derived release says, contradicts them.) The published tiles are arrays `(H, W, C)` that tifffile wrote as
pages, which are read as well as ordinary GeoTIFFs. Labels hold CORINE codes, 13 of them; any other is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.datasets.base import PatchDataset, Transforms, all_there, filled, unique
from spectralgpt.data.datasets.images import existing, no_data, open_image, read_mask, whole
from spectralgpt.data.datasets.tables import packed, read_lines
from spectralgpt.data.paths import inside
from spectralgpt.data.raster import Header, read_header, read_pages
from spectralgpt.data.record import Record, extremes
from spectralgpt.data.splits import part
from spectralgpt.errors import UserError

FILE_ORDER = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")
_CLASSES: tuple[tuple[int, str, str], ...] = (
    (0, "Background", "#000000"),
    (21, "Arable land", "#ffdc82"),
    (22, "Permanent crops", "#ce8541"),
    (23, "Pastures", "#bcb76c"),
    (31, "Forests", "#00ff00"),
    (5, "Surface water", "#07fcfa"),
    (32, "Shrub", "#5c9b29"),
    (33, "Open spaces", "#8b4512"),
    (41, "Wetlands", "#836fff"),
    (13, "Mine, dump", "#9300d3"),
    (14, "Artificial vegetation", "#ff82ff"),
    (11, "Urban fabric", "#fe0000"),
    (12, "Buildings", "#830cbe"),
)
CODES = {code: index for index, (code, _, _) in enumerate(_CLASSES)}


class SegMunich(PatchDataset):
    """`<root>/dataset/<split>.txt` with an id per line, `<root>/<part>/img/<id>.tif`, `<root>/<part>/label/<id>.tif`.

    The part is the split's own folder, or else the one of "train" and "test" that has the image.
    """

    title = "SegMunich"
    task = "segmentation"
    classes = tuple(name for _, name, _ in _CLASSES)
    colours = tuple(colour for _, _, colour in _CLASSES)

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        bands: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        *,
        val_share: float = 0.0,
        partial: bool = False,
    ) -> None:
        """Lists the split's tiles.

        Args:
            root: the archive.
            split: "train", "val" or "test".
            bands: names, in this order; the file's 10 by default.
            transforms: applied to every sample.
            val_share: of the tiles in train.txt, by a hash of their ids, that are "val" where there is no val.txt, as
                in the published archive.
            partial: use the tiles that are there, where some of the split are missing.

        Raises:
            UserError: the folder, the list or a band is wrong, or tiles are missing.
        """
        super().__init__(root, split, SENTINEL2, bands or FILE_ORDER, transforms)
        lacking = [name for name in self.bands if name not in FILE_ORDER]
        if lacking:
            raise UserError(f"bands: expected bands of SegMunich, {' '.join(FILE_ORDER)}, got {' '.join(lacking)}")
        path = self.root / "dataset" / f"{split}.txt"
        shared = bool(val_share) and split != "test" and not (self.root / "dataset" / "val.txt").exists()
        path = path.with_name("train.txt") if shared else path
        ids = [id.removesuffix(".tif") for id in read_lines(path)]
        if shared:
            ids = [id for id in ids if part(id, {"train": 1 - val_share, "val": val_share}) == split]
        unique(ids, path)
        found = [self._find(id) for id in ids]
        missing = [id for id, name in zip(ids, found, strict=True) if name is None]
        all_there(self, missing, len(ids), partial)
        names = [name for name in found if name is not None]
        filled(self, len(names), path)
        self._names = packed(names)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether the lists and a folder of images are there."""
        return (root / "dataset").is_dir() and any((root / part / "img").is_dir() for part in cls.splits)

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self._names)

    def name(self, index: int) -> str:
        """`<part>/img/<id>.tif`."""
        return str(self._names[index].decode())

    def read(self, index: int) -> Record:
        """The tile and its classes."""
        name = self.name(index)
        path = existing(self.root / name)
        part, _, file = name.split("/", 2)
        header = read_header(path)
        record = self._from_pages(header, name) if len(header.descriptions) == 1 else None
        if record is None:
            record = whole(open_image(path, SENTINEL2, self.bands, FILE_ORDER, name))
        mask = read_mask(self.root / part / "label" / file, record.pixels.shape[-2:], CODES, record.crs)
        return Record(
            name, record.pixels, record.valid, record.low, record.high, None, mask, record.crs, record.transform
        )

    def _find(self, id: str) -> str | None:
        parts = dict.fromkeys((self.split, "train", "test"))
        return next((name for part in parts if inside(self.root, name := f"{part}/img/{id}.tif").exists()), None)

    def _from_pages(self, header: Header, name: str) -> Record | None:
        """The record of an array of tifffile's, or None where the file is none."""
        pages = read_pages(header)
        if pages is None:
            return None
        if pages.shape[2] != len(FILE_ORDER):
            raise UserError(f"{header.path}: expected {len(FILE_ORDER)} bands as the last axis, got {pages.shape}")
        pixels = np.moveaxis(pages, -1, 0)[[FILE_ORDER.index(band) for band in self.bands]]
        valid = np.isfinite(pixels) & (pixels != self.card.nodata)
        if not valid.any():
            raise no_data(header.path)
        pixels[~valid] = 0
        some = None if valid.all() else valid
        return Record(name, pixels, some, *extremes(pixels, some))
