# SPDX-License-Identifier: Apache-2.0
"""What segmentation and change detection share: which decoder, images of any size, published checkpoints.

Images are padded to whole patches by repeating the last row and column, and the padding is cut off the result.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralgpt.heads.base import HeadConfig, TaskModel
from spectralgpt.heads.dense import DenseHead, LinearDenseHead
from spectralgpt.heads.published import PublishedHead
from spectralgpt.heads.pyramid import PyramidHead
from spectralgpt.models.base import SpectralModel
from spectralgpt.models.config import ModelConfig

logger = logging.getLogger(__name__)

DECODERS: dict[str, type[DenseHead]] = {
    "linear": LinearDenseHead,
    "pyramid": PyramidHead,
    "published": PublishedHead,
}


class DenseModel(TaskModel):
    """A task model whose output is a map of its image."""

    head: DenseHead

    def __init__(self, config: ModelConfig, head_config: HeadConfig) -> None:
        """Fresh weights."""
        super().__init__(config, head_config)
        self._wear(head_config, DECODERS[head_config.head](config, head_config))

    @contextmanager
    def expecting(self, published: Collection[str]) -> Iterator[None]:
        """Takes on the published head where the checkpoint has one and the model another; keeps it on success alone."""
        if self.head_config.head == "published" or not any(key.startswith("cls_seg.") for key in published):
            yield
            return
        before, trained = (self.head_config, self.head), self.encoder.norm.weight.requires_grad
        fresh: dict[str, Any] = {"head": "published", "spectral_pool": "", "dropout": -1.0, "width": 0, "compare": ""}
        head_config = dataclasses.replace(self.head_config, **fresh)
        like = next(self.head.parameters())
        self._wear(head_config, PublishedHead(self.config, head_config).to(like).train(self.training))
        try:
            yield
        except Exception:
            self._wear(*before)
            self.encoder.norm.requires_grad_(trained)
            raise
        logger.warning("head: %s replaced by the checkpoint's published one; build the optimizer now", before[0].head)

    def _wear(self, head_config: HeadConfig, head: DenseHead) -> None:
        self.head_config = head_config
        self.head = head
        self.published_names = {**SpectralModel.published_names, **head.published_names}
        if head_config.head == "published":  # never applies the encoder's final norm, which must not wait for gradients
            self.encoder.norm.requires_grad_(False)

    def _pad(self, image: Tensor) -> Tensor:
        _, p, q = self.config.patch_size
        bottom, right = -image.shape[-2] % p, -image.shape[-1] % q
        return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image


def compare(maps: Tensor, how: str) -> Tensor:
    """How two dates' maps meet.

    Args:
        maps: (2*B, D, h, w), those of the earlier date first.
        how: "absolute", "difference" or "concat", as `HeadConfig.compare`.

    Returns:
        (B, D, h, w), or (B, 3*D, h, w) for "concat".
    """
    before, after = maps.unflatten(0, (2, -1)).unbind()
    difference: Tensor = before - after
    if how == "concat":
        return torch.cat([before, after, difference], dim=1)
    return difference.abs() if how == "absolute" else difference
