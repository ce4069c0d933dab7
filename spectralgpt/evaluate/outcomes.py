# SPDX-License-Identifier: Apache-2.0
"""A model's outputs on a whole split, kept so that any resample of the images can be scored without running it again.

Labels of images come from views as validation sees them. Maps come from whole images by overlapping windows, as
prediction makes them: every labelled pixel is scored, at borders and beyond the last full window too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from spectralgpt.data.batch import Batch, Views
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.loader import EpochSampler, loader
from spectralgpt.data.normalize import Normalizer
from spectralgpt.data.record import Record
from spectralgpt.data.scene_set import DataConfig
from spectralgpt.data.views import ViewConfig
from spectralgpt.errors import UserError
from spectralgpt.heads import TaskModel
from spectralgpt.models.config import ModelConfig
from spectralgpt.predict.array import predict_array
from spectralgpt.train.scores import Scores


@dataclass(frozen=True)
class Outcomes:
    """What came of N images.

    Attributes:
        scores: of all of them.
        names: of the images.
        errors: how wrong each is, (N,): the loss of its label, or the share of its labelled pixels that are wrong; NaN
            where nothing is labelled.
        image: which image an entry belongs to, (M,) int64; entries are the non-zero cells of each image's confusion.
        cell: target * classes + prediction of an entry, (M,) int64.
        count: images or pixels of an entry, (M,) int64.
    """

    scores: Scores
    names: tuple[str, ...]
    errors: NDArray[np.float64]
    image: NDArray[np.int64]
    cell: NDArray[np.int64]
    count: NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """A model on a split.

    Attributes:
        model: in evaluation mode, on its device.
        dataset: the split, with the model's bands.
        normalizer: the rule for pixels.
        config: how labelled images are seen and read.
        batch_size: images, or windows, at a time.
        overlap: of windows, as `predict_array` takes it.
    """

    model: TaskModel
    dataset: PatchDataset
    normalizer: Normalizer
    config: DataConfig
    batch_size: int = 16
    overlap: float = 0.25

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def map_at(self, place: int) -> NDArray[np.int64]:
        """The model's classes of an image (H, W)."""
        classes: NDArray[np.int64] = map_of(self, self.dataset.read(place))[0].argmax(0).numpy()
        return classes


def outcomes(run: Run) -> Outcomes:
    """Runs a model over a split.

    Raises:
        UserError: an image that cannot be read (named), or labels that cannot be scored.
    """
    head, dataset = run.model.head_config, run.dataset
    scores = Scores(head.task, head.num_classes, dataset.classes, head.ignore_index)
    steps = _maps(run, scores) if head.dense else _labels(run, scores)
    errors: list[NDArray[np.float64]] = []
    entries: list[tuple[NDArray[np.int64], ...]] = []
    with tqdm(total=len(dataset), desc="evaluate", unit="image", disable=None) as bar:
        for wrong, *entry in steps:
            errors.append(wrong)
            entries.append(tuple(entry))
            bar.update(len(wrong))
    image, cell, count = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    names = tuple(dataset.name(index) for index in range(len(dataset)))
    return Outcomes(scores, names, np.concatenate(errors), image, cell, count)


Step = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def label_batches(
    encoder: ModelConfig, dataset: PatchDataset, normalizer: Normalizer, config: DataConfig, batch_size: int
) -> Iterator[Batch]:
    """All images of a split in order as validation sees them, the last incomplete batch included."""
    views = ViewConfig(square_side(encoder)).evaluation("middle" if config.crop == "window" else "center")
    source, count = Views(dataset, normalizer, views, encoder.patch_size), len(dataset)
    order = EpochSampler(count, 0, shuffle=False)
    yield from loader(source, order, batch_size, num_workers=config.num_workers, stop=count)


def square_side(config: ModelConfig) -> int:
    """Rows and columns that a model is made for.

    Raises:
        UserError: they differ.
    """
    height, width = config.height_width
    if height != width:
        raise UserError(f"model: expected one for square images, got {height} x {width}")
    return height


def _labels(run: Run, scores: Scores) -> Iterator[Step]:
    model, device, start = run.model, run.device, 0
    for batch in label_batches(model.config, run.dataset, run.normalizer, run.config, run.batch_size):
        sample = batch.to(device).images()
        with torch.inference_mode():
            output = model(sample["image"]).float().cpu()
        target = sample["label"].cpu()
        scores.update(output, target)
        image = np.arange(start, start + len(target))
        start += len(target)
        if scores.task == "multi_label":
            losses = F.binary_cross_entropy_with_logits(output.double(), target.double(), reduction="none").mean(1)
            yield losses.numpy(), image[:0], image[:0], image[:0]
        else:
            losses = F.cross_entropy(output.double(), target, reduction="none")
            yield losses.numpy(), image, (target * output.shape[1] + output.argmax(1)).numpy(), np.ones_like(image)


def _maps(run: Run, scores: Scores) -> Iterator[Step]:
    for index in range(len(run.dataset)):
        probabilities, target = map_of(run, run.dataset.read(index))
        before = scores.confusion.clone()
        scores.update(probabilities[None], target[None])
        added = (scores.confusion - before).flatten().numpy()
        cell = np.flatnonzero(added)
        right = np.diag(added.reshape(before.shape)).sum()
        wrong = 1 - right / added.sum() if added.any() else np.nan
        yield np.array([wrong]), np.full(len(cell), index), cell, added[cell]


def map_of(run: Run, record: Record) -> tuple[Tensor, Tensor]:
    """Class probabilities (classes, H, W) of a whole image or pair, and its targets (H, W) int64.

    Pixels that hold no data in any band of a date count as unlabelled.
    """
    if record.mask is None:
        raise UserError(f"{record.name}: expected a map of labels, got none")
    offset, scale = (values[..., None, None] for values in run.normalizer.of_record(record))
    pixels = torch.from_numpy((record.pixels.astype(np.float32) - offset) * scale)
    target = torch.from_numpy(record.mask.astype(np.int64))
    if record.valid is not None:
        valid = torch.from_numpy(record.valid)
        pixels[~valid] = 0
        seen = valid.any(-3)
        target[~(seen.all(0) if seen.dim() == 3 else seen)] = run.model.head_config.ignore_index
    dates = [date.to(run.device) for date in (pixels.unbind(0) if pixels.dim() == 4 else (pixels,))]
    expected = 2 if run.model.task == "change" else 1
    if len(dates) != expected:
        raise UserError(f"{record.name}: expected {expected} date(s) for {run.model.task}, got {len(dates)}")
    size, predict = square_side(run.model.config), run.model.probabilities
    return predict_array(predict, *dates, size=size, overlap=run.overlap, batch_size=run.batch_size), target
