# SPDX-License-Identifier: Apache-2.0
"""What a training reads, under one face: windows over scenes, or views of a data set's images, original or as shards.

Both give batches by the loader's keys and both become images on the device in `images`, so a training loop does not
know which it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from spectralgpt.data.bands import SensorCard
from spectralgpt.data.batch import Batch, Key, Views, to_images
from spectralgpt.data.datasets import SHARDS, open_dataset
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.datasets.dates import SingleDates
from spectralgpt.data.datasets.scene import SceneWindows, open_windows
from spectralgpt.data.loader import EpochSampler, Rejects, loader
from spectralgpt.data.normalize import Normalization, Normalizer
from spectralgpt.data.report import parse_options
from spectralgpt.data.scene_set import DataConfig, Split
from spectralgpt.data.shards import Shards
from spectralgpt.data.views import ViewConfig
from spectralgpt.errors import UserError


def open_source(
    config: DataConfig,
    size: int,
    patch_size: tuple[int, int, int],
    split: Split,
    seed: int,
    normalizer: Normalizer | None = None,
    labelled: bool = False,
) -> Source:
    """The images of one side of the split, as squares of `size` pixels.

    Args:
        config: which images.
        size: rows and columns of a square.
        patch_size: bands, rows and columns of a token.
        split: "train" or "val".
        seed: of positions, crops and flips in training.
        normalizer: of a data set, instead of the configuration's.
        labelled: a data set's labels matter, so that whole images with maps are validated, not their centre.

    Raises:
        UserError: the images, the size or the patch do not fit together.
    """
    if config.dataset is None:
        return open_windows(config, size, patch_size, split, seed)
    train = split == "train"
    name, only = (config.train_split, config.train_options) if train else (config.val_split, ())
    dataset = open_split(config, name, config.bands or None, only)
    return ImageViews(dataset, config, size, patch_size, split, seed, normalizer, labelled)


def open_split(
    config: DataConfig, split: str, bands: Sequence[str] | None, train_options: Sequence[str] = ()
) -> PatchDataset:
    """A split of the configuration's data set.

    Args:
        config: its kind, folder and options.
        split: as the data set names it.
        bands: names, in this order; the data set's default where None.
        train_options: of the training side alone.

    Raises:
        UserError: options for shards; whatever the data set finds wrong.
    """
    if config.dataset == SHARDS:
        for key, options in {"options": config.options, "train_options": train_options}.items():
            if options:
                raise UserError(
                    f"data.{key}: expected none with shards, which hold what was chosen when they were made, got "
                    f"{', '.join(options)}; choose by `spectralgpt prepare shards --option`, and here --data.{key} []"
                )
        return Shards(config.root, split, bands)
    assert config.dataset is not None
    named = parse_options((*config.options, *train_options))
    return open_dataset(config.dataset, config.root, split, bands, **named)


class ImageViews(Dataset[Any]):
    """Views of a data set's images: random crops and flips in training, none of these in validation.

    Attributes:
        dataset: the images.
        split: "train" or "val".
        views: the batches themselves.
    """

    def __init__(
        self,
        dataset: PatchDataset,
        config: DataConfig,
        size: int,
        patch_size: tuple[int, int, int],
        split: Split,
        seed: int,
        normalizer: Normalizer | None = None,
        labelled: bool = False,
    ) -> None:
        """See `open_source`."""
        if dataset.task == "change" and not labelled:
            dataset = SingleDates(dataset)
        if not len(dataset):
            raise UserError(f"{dataset.root}: expected images in the split {dataset.split}, found none")
        views = ViewConfig(size=size, area=config.crop_area, crop="window" if config.crop == "window" else "random")
        if split == "val":
            whole = labelled and dataset.task in ("segmentation", "change")
            views = views.evaluation("middle" if config.crop == "window" else "whole" if whole else "center")
        # Whatever its size, an image of a data set counts as a patch.
        normalizer = normalizer or config.normalizer((1, 1))
        self.split: Split = split
        self.views = Views(dataset, normalizer, views, patch_size, seed, replace_bad=split == "train")
        self.dataset = dataset

    @property
    def card(self) -> SensorCard:
        """The sensor, cut to the bands in use; its groups are the model's."""
        return self.dataset.card

    @property
    def band_names(self) -> tuple[str, ...]:
        """Canonical band names, in the order of the channels."""
        return self.card.names

    @property
    def wavelengths(self) -> tuple[float, ...]:
        """Centre wavelengths in micrometres."""
        return self.card.wavelengths

    @property
    def normalization(self) -> dict[str, Any]:
        """What travels with the model."""
        return {**self.views.normalizer.to_dict(), "band_names": list(self.card.names)}

    def normalization_at(self, index: int) -> Normalization:
        """Offset and scale of an image; of a labelled pair, the first date's."""
        normalizer, names = self.views.normalizer, self.card.names
        affine = normalizer.of_record(self.dataset.read(index))
        offset, scale = (tuple(values.reshape(-1, len(names))[0].tolist()) for values in affine)
        return Normalization(normalizer.method, names, offset, scale)

    def describe(self) -> str:
        """What is read, in one line for the console."""
        config, notes = self.views.config, "".join(f"; {note}" for note in self.dataset.notes[:3])
        return (
            f"{self.dataset.root} ({self.dataset.split}): {len(self)} images as views of {config.size} x "
            f"{config.size}; bands {' '.join(self.band_names)}; {self.views.normalizer.method} normalisation{notes}"
        )

    def origin(self, index: int, epoch: int = 0) -> tuple[str, int, int]:
        """Name of an image, and the first row and column of its view."""
        batch = self.views[epoch, index]
        return batch.names[0], int(batch.boxes[0, 0]), int(batch.boxes[0, 1])

    def __len__(self) -> int:
        """Images of an epoch."""
        return len(self.views)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """The sample of (epoch, index)."""
        return {name: value[0] for name, value in images(self.views[key], torch.device("cpu")).items()}

    def __getitems__(self, keys: list[Key]) -> Batch:
        """The batch of these keys, still raw."""
        return self.views.__getitems__(keys)


def images(batch: Batch, device: torch.device, labelled: bool = False) -> dict[str, Tensor]:
    """A batch's `image` (B, C, h, w), `valid` (B, L) and `sample_id` (B,) on a device.

    With `labelled` as `Batch.images` says: also `label` and `mask`, and the dates of a pair together.
    """
    sample = to_images(batch, device)
    return sample if labelled else {name: sample[name] for name in ("image", "valid", "sample_id")}


Source = SceneWindows | ImageViews


def training_images(
    source: Source,
    sampler: EpochSampler,
    batch_size: int,
    start: int,
    config: DataConfig,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    labelled: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Training batches without end, on a device; processes that read ahead start before this returns.

    Args:
        source: the images.
        sampler: their order.
        batch_size: images per batch of all processes together.
        start: number of samples the run has seen.
        config: number of reading processes, and how many images may be bad.
        device: where the images go.
        rank: place of this process.
        world_size: number of processes.
        labelled: with labels and masks, and the dates of a pair together.

    Raises:
        UserError: while iterating, too many images cannot be read; lists them.
    """
    batches = loader(
        source,
        sampler,
        batch_size,
        start=start,
        num_workers=config.num_workers,
        rank=rank,
        world_size=world_size,
        pin_memory=device.type == "cuda",
    )
    return _on_device(batches, Rejects(len(source), config.max_bad), device, labelled)


def _on_device(
    batches: Iterator[Batch], rejects: Rejects, device: torch.device, labelled: bool
) -> Iterator[dict[str, Tensor]]:
    for batch in batches:
        rejects.add(batch.skipped)
        yield images(batch, device, labelled)
