# SPDX-License-Identifier: Apache-2.0
"""How often each class occurs in a training set, weights made of that, and labels that nothing can be learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.errors import UserError

_PUBLISHED_MODIFIER = 10  # on the weight of unchanged pixels

Counts = NDArray[np.float64]


def count_classes(dataset: PatchDataset, enough: int | None = None) -> Counts:
    """Images with each label, or pixels of each class, (classes,).

    Args:
        dataset: labels of images are known without opening one; for masks every image is read.
        enough: of masks, stop as soon as so many classes have been seen.
    """
    labels, count = dataset.labels(), len(dataset.classes)
    if labels is not None:
        found = np.bincount(labels, minlength=count) if labels.ndim == 1 else labels.sum(0)
        return found.astype(np.float64)
    total = np.zeros(count)
    for index in tqdm(range(len(dataset)), "classes", delay=2, leave=False):
        mask = dataset.read(index).mask
        if mask is not None:
            total += np.bincount(mask[mask < count], minlength=count)
        if enough is not None and (total > 0).sum() >= enough:
            break
    return total


def check_labels(dataset: PatchDataset, split: Literal["train", "val"], counts: Counts) -> None:
    """Refuses what cannot be learnt from or scored.

    Raises:
        UserError: training labels of a single class, or held-out ones without a positive.
    """
    where = f"data.{split}_split {dataset.split} of {dataset.root}"
    seen = int((counts > 0).sum())
    if split == "val" and dataset.task == "change" and not counts[1]:
        raise UserError(f"{where}: expected changed pixels to score by, found none; choose another split")
    if dataset.task == "multi_label":
        if not seen:
            raise UserError(f"{where}: expected images with labels, found none")
        return
    if not seen:
        raise UserError(f"{where}: expected labels, found none")
    if split == "train" and seen < 2:
        only = dataset.classes[int(counts.argmax())]
        raise UserError(f"{where}: expected at least two classes to tell apart, got only {only!r}")


def class_weights(chosen: str | Sequence[float], counts: Counts, task: str) -> list[float] | None:
    """Weights whose mean over the training set is 1, or None; a class that does not occur has weight 1 before that.

    Args:
        chosen: `finetune.class_weights`.
        counts: of the training set.
        task: what the labels are.

    Raises:
        UserError: a list of another length, or the published rule for another task.
    """
    if chosen == "none":
        return None
    shares = counts / counts.sum()
    if chosen == "balanced":
        weights = np.divide(1, shares, out=np.ones_like(shares), where=shares > 0)
    elif chosen == "published":
        if task != "change":
            raise UserError(f"finetune.class_weights: expected balanced or a list for {task}, got published")
        changed = shares[1]
        weights = np.array([_PUBLISHED_MODIFIER * 2 * changed, 2 * (1 - changed)])
    elif len(chosen) == len(counts):
        weights = np.array(chosen, np.float64)
    else:
        raise UserError(
            f"finetune.class_weights: expected one for each of {len(counts)} classes, got {len(chosen)} of them"
        )
    scaled: list[float] = (weights / (weights * shares).sum()).tolist()
    return scaled
