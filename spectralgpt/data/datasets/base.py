# SPDX-License-Identifier: Apache-2.0
"""What every data set of images offers, whatever its archive looks like.

Two ways in. `read` gives the `Record` that shards, statistics and training start from. Indexing gives a
TorchGeo-style sample (`image`, `label`, `mask`) in raw units for everyone else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from spectralgpt.data.bands import SensorCard
from spectralgpt.data.paths import local
from spectralgpt.data.record import Record
from spectralgpt.data.splits import subset
from spectralgpt.errors import UserError

if TYPE_CHECKING:
    from spectralgpt.viz.gallery import Figure, Picture

Task = Literal["none", "single_label", "multi_label", "segmentation", "change"]
Sample = dict[str, Any]
Transforms = Callable[[Sample], Sample]
Labels = NDArray[np.int64] | NDArray[np.uint8]


class PatchDataset(Dataset[Sample]):
    """Images of one split, read by band name.

    Attributes:
        title: what users call the data set.
        splits: the names a split may have.
        root: the archive's folder.
        split: which part.
        card: the sensor, cut to the bands asked for, in their order.
        classes: class names; a label is an index into them.
        colours: "#rrggbb" of each class; empty where the data set defines none.
        task: what the labels are.
        transforms: applied to every sample, not to records.
        notes: what was left out, cropped or assumed, one line each.
    """

    title: ClassVar[str] = "data set"
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    task: Task = "none"
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | Path,
        split: str,
        sensor: SensorCard,
        bands: Sequence[str] | None,
        transforms: Transforms | None,
    ) -> None:
        """Checks the folder, the split and the bands; None stands for all bands of the sensor.

        Raises:
            UserError: one of them is wrong.
        """
        self.root = local(root)
        if not self.root.is_dir():
            raise UserError(f"{root}: expected a folder of {self.title}, found none")
        if split not in self.splits:
            raise UserError(f"split: expected one of {', '.join(self.splits)}, got {split!r}")
        if bands is not None and not len(bands):
            raise UserError("bands: expected at least one band name, got none")
        self.split = split
        self.card = sensor if bands is None else sensor.select(bands)
        self.transforms = transforms
        self.notes: list[str] = []

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether a folder looks like this data set's archive."""
        return False

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in the order of the channels."""
        return self.card.names

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The image's path below the root or its id, without opening a file."""

    @abstractmethod
    def read(self, index: int) -> Record:
        """The image and its labels.

        Raises:
            UserError: the image or its label is missing, damaged or not what the data set promises; names it.
        """

    def labels(self) -> Labels | None:
        """Every image's label without opening one: `(n,)` indices, or `(n, classes)` 0 and 1; None for masks."""
        return None

    def __getitem__(self, index: int) -> Sample:
        """The sample: `image` float32 in raw units, and `label` or `mask` int64, `valid` bool where not all are."""
        record = self.read(index)
        sample: Sample = {"image": torch.from_numpy(record.pixels.astype("float32"))}
        if record.valid is not None:
            sample["valid"] = torch.from_numpy(record.valid)
        if record.label is not None:
            sample["label"] = torch.as_tensor(record.label, dtype=torch.int64)
        if record.mask is not None:
            sample["mask"] = torch.from_numpy(record.mask.astype("int64"))
        return sample if self.transforms is None else self.transforms(sample)

    def plot(self, sample: Sample, *, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """A sample in true colour with its label or mask; pairs side by side, with the change map."""
        from spectralgpt.viz.gallery import sample_figure

        return sample_figure(picture_of(self, sample), self.classes, self.colours, show_titles, suptitle)


def picture_of(dataset: PatchDataset, sample: Sample, size: int | None = None) -> Picture:
    """A sample as `viz` draws it, thinned to about `size` rows and columns."""
    from spectralgpt.viz.gallery import Picture, colour_bands

    parts = {key: np.asarray(sample[key]) for key in ("image", "label", "mask", "valid") if key in sample}
    step = 1 if size is None else max(1, max(parts["image"].shape[-2:]) // size)
    bands = colour_bands(dataset.card.wavelengths)
    thin = (..., slice(None, None, step), slice(None, None, step))
    return Picture(
        image=parts["image"][thin][..., bands, :, :],
        band_names=[dataset.bands[band] for band in bands],
        caption=label_text(dataset.classes, parts["label"]) if "label" in parts else "",
        mask=parts["mask"][thin].copy() if "mask" in parts else None,
        valid=parts["valid"][thin][..., bands, :, :] if "valid" in parts else None,
    )


def label_text(classes: Sequence[str], label: NDArray[Any]) -> str:
    """The class name of an index, or the names of all classes that are 1."""
    chosen = [int(label)] if label.ndim == 0 else np.flatnonzero(label).tolist()
    return ", ".join(classes[index] for index in chosen)


def filled(dataset: PatchDataset, count: int, where: str | Path) -> None:
    """Raises UserError where a split came out empty."""
    if not count:
        raise UserError(f"{where}: expected images for the {dataset.split} split of {dataset.title}, found none")


def unique(names: Sequence[str], where: str | Path) -> None:
    """Raises UserError where a list names an image twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where}: expected every image once, {twice[0]} is there twice; remove one")


def all_there(dataset: PatchDataset, missing: Sequence[str], count: int, partial: bool) -> None:
    """Refuses an archive that lacks images a list names, or notes how many; `count` are listed."""
    if not missing:
        return
    found = f"found {count - len(missing)} of {count} listed images, {missing[0]} is the first missing"
    if not partial:
        raise UserError(
            f"{dataset.root}: expected all images of the {dataset.split} split, {found}; complete the archive or "
            "set partial=True to use what is there"
        )
    dataset.notes.append(found)


def chosen(names: Sequence[str], fraction: float, seed: int, labels: Labels | None = None) -> list[int] | None:
    """Indices of a subset, of every class its share where labels are single; None for everything."""
    if fraction == 1:
        return None
    return subset(names, fraction, seed, labels.tolist() if labels is not None and labels.ndim == 1 else None)
