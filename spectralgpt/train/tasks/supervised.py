# SPDX-License-Identifier: Apache-2.0
"""Losses of labels and of pixels, in shares of a step.

An image weighs the same wherever it is. A pixel does too: shares count labelled pixels against those a step would have
if all were labelled, as pretraining does with nodata, so that no process needs to know the others' masks. Reported
losses are means over what was scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralgpt.data.mixing import MixConfig
from spectralgpt.heads import HeadConfig
from spectralgpt.train import distributed
from spectralgpt.train.tasks.augment import erased, mixed
from spectralgpt.train.tasks.base import Batch, Objective

if TYPE_CHECKING:
    from spectralgpt.train.run import Run


class Supervised(Objective):
    """The sums are those of the losses and of what they were taken over."""

    num_sums = 2

    def __init__(self, run: Run, place: Tensor, weights: Sequence[float] | None) -> None:
        """`weights` are those of the classes."""
        super().__init__(run, place)
        self._weights = None if weights is None else torch.tensor(weights, device=run.device)
        self._config = run.config.finetune

    def measured(self, sums: Tensor) -> Tensor:
        """The loss."""
        return (sums[0] / sums[1].clamp(min=1))[None]

    def _backward(self, loss: Tensor, share: float) -> None:
        """`loss` is the sum over a piece."""
        (loss * (self._run.scaler.scale(self._unit) * share)).backward()

    def _erased(self, image: Tensor, sample_id: Tensor) -> Tensor:
        share = self._config.erasing
        return erased(image, sample_id, share, self._run.config.seed, self._place) if share else image


class Labels(Supervised):
    """Cross-entropy of one label per image, or the mean over the classes of that of several."""

    def inputs(self, batch: Batch, number: int) -> Batch:
        """Images, erased and mixed, and label shares (B, classes)."""
        run, config, count = self._run, self._config, head_of(self._run).num_classes
        label, image = batch["label"], self._erased(batch["image"], batch["sample_id"])
        target = (F.one_hot(label, count) if label.dim() == 1 else label).float()
        mix = MixConfig(config.mixup, config.cutmix)
        if mix.mixup or mix.cutmix:
            place = number * distributed.world_size() + distributed.rank()
            image, target = mixed(image, target, mix, run.config.seed, run.progress.step + 1, place)
        return {"image": image, "target": target}

    def forward_backward(self, image: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """A piece of B images."""
        run = self._run
        with run.autocast():
            logits = run.wrapped(image)
        loss = label_loss(logits, target, run.config.task, self._weights, self._config.label_smoothing).sum()
        self._backward(loss, self._share)
        return torch.stack([loss.detach(), torch.full_like(loss, len(image))])


class Pixels(Supervised):
    """Cross-entropy of the labelled pixels of an image, or of a pair."""

    def inputs(self, batch: Batch, number: int) -> Batch:
        """Images or pairs, erased, and class indices (B, H, W)."""
        image = batch["image"]
        dates = image.flatten(1, 2) if image.dim() == 5 else image  # the same box in both
        return {
            "image": self._erased(dates, batch["sample_id"]).view_as(image),
            "target": pixel_targets(batch, self._run),
        }

    def forward_backward(self, image: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """A piece of B images or pairs."""
        run = self._run
        with run.autocast():
            output = run.wrapped(*dates_of(image))
        loss = pixel_loss(output, target, head_of(run), self._weights, self._config.label_smoothing)
        self._backward(loss, self._share / target[0].numel())
        return torch.stack([loss.detach(), (target != head_of(run).ignore_index).sum().to(loss.dtype)])


def head_of(run: Run) -> HeadConfig:
    """The head of the run's model."""
    head: HeadConfig = run.model.head_config  # type: ignore[assignment]
    return head


def dates_of(image: Tensor) -> tuple[Tensor, ...]:
    """What a model takes: (B, C, H, W), or both dates of (B, 2, C, H, W)."""
    return tuple(image.unbind(1)) if image.dim() == 5 else (image,)


def pixel_targets(batch: Batch, run: Run) -> Tensor:
    """Class indices (B, H, W), without those of pixels that hold no data in any band group."""
    groups, height, width = run.model.config.grid
    valid = batch["valid"].unflatten(-1, (groups, height, width)).any(-3)  # (B, [T,] h, w)
    valid = valid.all(1) if valid.dim() == 4 else valid
    _, rows, columns = run.model.config.patch_size
    pixels = valid.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
    return torch.where(pixels, batch["mask"], head_of(run).ignore_index)


def label_loss(logits: Tensor, target: Tensor, task: str, weights: Tensor | None, smoothing: float = 0.0) -> Tensor:
    """Loss of each image, (B,) float32, for `target` (B, N) shares of one label or 0 and 1 of several."""
    logits = logits.float()
    if task == "multi_label":
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (loss if weights is None else loss * weights).mean(1)
    target = target * (1 - smoothing) + smoothing / target.shape[1]
    loss = -target * logits.log_softmax(1)
    return (loss if weights is None else loss * weights).sum(1)


def pixel_loss(
    output: Tensor, target: Tensor, head: HeadConfig, weights: Tensor | None, smoothing: float = 0.0
) -> Tensor:
    """Sum over the labelled pixels, 0-d float32, for logits or log-probabilities (B, N, H, W) and indices (B, H, W)."""
    # Logarithms of probabilities are logits as well: the softmax inside gives them back.
    return F.cross_entropy(
        output.float(),
        target,
        weight=weights,
        ignore_index=head.ignore_index,
        label_smoothing=smoothing,
        reduction="sum",
    )
