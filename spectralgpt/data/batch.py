# SPDX-License-Identifier: Apache-2.0
"""Batches of raw pixels with their views, and the images they become on the device.

A worker reads records and packs them: pixels of all images one after another in one buffer, in the files' own type,
so that 16 bits travel as 16 bits, with boxes, flips and normalisation beside them. `Batch.images` does the
arithmetic, after the copy to the accelerator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spectralgpt import ops
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.normalize import Normalizer
from spectralgpt.data.raster import Bools, Pixels
from spectralgpt.data.record import IGNORE, Record
from spectralgpt.data.resample import Floats
from spectralgpt.data.views import View, ViewConfig, draw_views, resize_mask, valid_tokens
from spectralgpt.errors import UserError

Key = tuple[int, int]

_PACKED = tuple(map(np.dtype, ("uint8", "uint16", "int16", "float32")))
_REPLACEMENTS = 8


@dataclass(frozen=True)
class Batch:
    """B raw images and how to look at them.

    Attributes:
        pixels: `(N,)`, all images one after another.
        layout: `(B, 3)` int64, start, rows and columns of each.
        boxes: `(B, 4)` int32, first row, first column, rows and columns.
        flips: `(B, 2)` bool, vertical and horizontal.
        offset: `(B, T * C)` float32.
        scale: likewise.
        valid: tokens without no-data, `(B, L)` bool, or `(B, T, L)` of several dates.
        sample_id: `(B,)` int64, places in the data set.
        label: `(B,)` or `(B, classes)` int64, or None.
        mask: `(B, size, size)` uint8 under the same view, or None.
        names: of the images.
        skipped: images that could not be read, with the reason; others took their places.
        num_bands: C.
        num_dates: T, or 0 where images have no such axis.
        view: what the images become.
    """

    pixels: Tensor
    layout: Tensor
    boxes: Tensor
    flips: Tensor
    offset: Tensor
    scale: Tensor
    valid: Tensor
    sample_id: Tensor
    label: Tensor | None
    mask: Tensor | None
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    num_bands: int
    num_dates: int
    view: ViewConfig

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory; the loader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str) -> Batch:
        """A copy on a device, without waiting for it."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def images(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """What a model takes, on the batch's device.

        Args:
            dtype: of the images.

        Returns:
            `image` normalised `(B, C, size, size)`, or `(B, T, C, size, size)` of several dates; `valid`,
            `sample_id`; where there are any, `label` and `mask` int64.
        """
        view = self.view
        image = ops.crop_resize(
            self.pixels,
            self.layout,
            self.boxes,
            self.flips,
            view.resized,
            bands=self.offset.shape[1],
            offset=self.offset,
            scale=self.scale,
            antialias=view.antialias,
            out_dtype=dtype,
        )
        inside = slice(view.first, view.first + view.size)
        image = image[:, :, inside, inside]
        if self.num_dates:
            image = image.unflatten(1, (self.num_dates, self.num_bands))
        sample = {"image": image, "valid": self.valid, "sample_id": self.sample_id}
        if self.label is not None:
            sample["label"] = self.label
        if self.mask is not None:
            sample["mask"] = self.mask.long()
        return sample

    def _map(self, function: Any) -> Batch:  # noqa: ANN401
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(value) for name, value in values.items() if isinstance(value, Tensor)})


def to_images(batch: Batch, device: torch.device | str) -> dict[str, Tensor]:
    """The batch's images on a device."""
    return batch.to(device).images()


class Views(Dataset[Batch]):
    """Batches of views of a data set; a key is (epoch, index).

    A batch is a pure function of its keys and the seed, whoever reads it.
    """

    def __init__(
        self,
        dataset: PatchDataset,
        normalizer: Normalizer,
        config: ViewConfig,
        patch_size: tuple[int, int, int] = (3, 8, 8),
        seed: int = 0,
        replace_bad: bool = False,
    ) -> None:
        """Views of `dataset`.

        Args:
            dataset: original files or shards.
            normalizer: the rule for offset and scale.
            config: crops and flips.
            patch_size: bands, rows and columns of a token.
            seed: of all chance.
            replace_bad: in training, an image that cannot be read gives its place to another one. In evaluation it
                is an error.

        Raises:
            UserError: the size is no multiple of the patch, or there are no statistics of a band.
        """
        _, rows, columns = patch_size
        if config.size % rows or config.size % columns:
            raise UserError(f"views.size: expected a multiple of the patch's {rows} x {columns}, got {config.size}")
        card = dataset.card
        groups = card.group_names(patch_size[0])
        self._channels = [
            card.names.index(name) for group in groups for name in group
        ]  # as the model's tokens see them
        self.dataset, self.config, self.normalizer = dataset, config, normalizer.select(dataset.card.names)
        self._patch_size, self._seed, self._replace_bad = patch_size, seed, replace_bad

    def __len__(self) -> int:
        """Images of an epoch."""
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Batch:
        """A batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these keys.

        Raises:
            UserError: an image cannot be read and is not replaced, or images that cannot be in one batch.
        """
        skipped: list[tuple[str, str]] = []
        records = [self._read(key, skipped) for key in keys]
        self._check(records)
        shapes = np.array([record.pixels.shape[-2:] for record in records], np.int64)
        views = draw_views(self.config, shapes, np.array(keys, np.int64), self._seed)
        affine = [self.normalizer.of_record(record) for record in records]
        masks = [
            resize_mask(r.mask, view, self.config) for r, view in zip(records, views, strict=True) if r.mask is not None
        ]
        pixels, layout = pack([(r.pixels, r.valid) for r in records], [offset for offset, _ in affine])
        return Batch(
            pixels=pixels,
            layout=layout,
            boxes=torch.tensor([view.box for view in views], dtype=torch.int32),
            flips=torch.tensor([view.flips for view in views]),
            offset=torch.from_numpy(np.stack([offset.ravel() for offset, _ in affine])),
            scale=torch.from_numpy(np.stack([scale.ravel() for _, scale in affine])),
            valid=torch.from_numpy(np.stack([self._tokens(r, view) for r, view in zip(records, views, strict=True)])),
            sample_id=torch.tensor([index for _, index in keys]),
            label=_labels(records),
            mask=torch.from_numpy(np.stack(masks)) if masks else None,
            names=tuple(record.name for record in records),
            skipped=tuple(skipped),
            num_bands=records[0].pixels.shape[-3],
            num_dates=records[0].pixels.shape[0] if records[0].pixels.ndim == 4 else 0,
            view=self.config,
        )

    def _read(self, key: Key, skipped: list[tuple[str, str]]) -> Record:
        """The record of a key, or of one that replaces it, which only the seed and the key decide."""
        epoch, index = key
        try:
            return self.dataset.read(index)
        except (UserError, OSError) as error:
            if not self._replace_bad:
                raise
            skipped.append((self.dataset.name(index), str(error)))
        # The first word of this purpose places the sample in the epoch; the others are free.
        words = ops.philox(self._seed, torch.tensor([index]), epoch, ops.Purpose.SHUFFLE, 1 + _REPLACEMENTS)[0, 1:]
        for word in words.tolist():
            other = word * len(self.dataset) >> 32
            try:
                return self.dataset.read(other)
            except (UserError, OSError) as error:
                skipped.append((self.dataset.name(other), str(error)))
        raise UserError(f"{skipped[0][1]}; nor could {_REPLACEMENTS} other images in its place be read")

    def _check(self, records: list[Record]) -> None:
        """One number of bands and dates, and labels of one kind, within the classes."""
        first = records[0]
        for record in records if self.dataset.classes else ():
            _check_classes(record, len(self.dataset.classes))
        for record in records[1:]:
            if record.pixels.shape[:-2] != first.pixels.shape[:-2]:
                raise UserError(
                    f"{record.name}: expected dates and bands {first.pixels.shape[:-2]} as in {first.name}, "
                    f"got {record.pixels.shape[:-2]}"
                )
            for what in ("label", "mask"):
                if (getattr(record, what) is None) != (getattr(first, what) is None):
                    raise UserError(f"{record.name} and {first.name}: expected a {what} of both or of neither")

    def _tokens(self, record: Record, view: View) -> Any:  # noqa: ANN401
        if record.valid is not None:
            return valid_tokens(record.valid[..., self._channels, :, :], view, self.config, self._patch_size)
        bands, rows, columns = self._patch_size
        dates = record.pixels.shape[:-3]
        num_tokens = (len(self._channels) // bands) * (self.config.size // rows) * (self.config.size // columns)
        return np.ones((*dates, num_tokens), bool)


def _check_classes(record: Record, count: int) -> None:
    """Raises UserError where a label is none of the classes."""
    if record.mask is not None:
        values, end = record.mask[record.mask != IGNORE], count
    else:
        values = np.atleast_1d(np.asarray([] if record.label is None else record.label))
        end = count if isinstance(record.label, int) else 2
    if values.size and values.max() >= end:
        raise UserError(f"{record.name}: expected labels from 0 to {end - 1}, got {values.max()}")


def _labels(records: list[Record]) -> Tensor | None:
    if records[0].label is None:
        return None
    return torch.from_numpy(np.array([record.label for record in records], np.int64))


def pack(images: Sequence[tuple[Pixels, Bools | None]], offsets: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    """All images in one buffer, invalid pixels as what normalises to 0, and start, rows and columns of each.

    Args:
        images: pixels `(..., C, H, W)` and which of them are valid; None where all are.
        offsets: `(..., C)` of each.

    Returns:
        `(N,)` of the images' own type, or float32 where they differ; `(B, 3)` int64.
    """
    dtypes = {pixels.dtype for pixels, _ in images}
    dtype = dtypes.pop() if len(dtypes) == 1 and dtypes <= set(_PACKED) else np.dtype(np.float32)
    ends = np.cumsum([pixels.size for pixels, _ in images])
    buffer = np.empty(int(ends[-1]), dtype)
    for (pixels, valid), offset, end in zip(images, offsets, ends.tolist(), strict=True):
        place = buffer[end - pixels.size : end].reshape(pixels.shape)
        place[...] = pixels
        if valid is not None:
            fill = offset if dtype.kind == "f" else np.rint(offset).clip(*_limits(dtype))
            np.copyto(place, fill.astype(dtype)[..., None, None], where=~valid)
    layout = [(end - pixels.size, *pixels.shape[-2:]) for (pixels, _), end in zip(images, ends.tolist(), strict=True)]
    return torch.from_numpy(buffer), torch.tensor(layout)


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)
