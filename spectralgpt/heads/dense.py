# SPDX-License-Identifier: Apache-2.0
"""What segmentation and change detection share: maps out of the encoder, and a decoder from maps to pixels.

A dense head works in two halves with the comparison of two dates between them: `extract` makes maps from one image,
`decode` makes logits from maps. Images of any size come in: they are padded to whole patches by repeating the last
row and column, and the padding is cut off the result.
"""

from __future__ import annotations

import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectralgpt.errors import UserError
from spectralgpt.heads.base import HeadConfig, TaskModel
from spectralgpt.heads.features import SpectralPool, feature_maps
from spectralgpt.models.base import SpectralModel
from spectralgpt.models.config import ModelConfig
from spectralgpt.models.encoder import Encoder

logger = logging.getLogger(__name__)


class DenseHead(nn.Module):
    """From an encoder and an image to one score per class and pixel."""

    published_names: ClassVar[Mapping[str, str]] = {}
    """Parts of the head's parameter names and what published checkpoints call them."""

    @abstractmethod
    def extract(self, encoder: Encoder, image: Tensor) -> list[Tensor]:
        """Maps of one image (B, C, H, W), of whole patches; two dates are compared map by map."""

    @abstractmethod
    def decode(self, maps: list[Tensor], height: int, width: int) -> Tensor:
        """Maps to logits (B, num_classes, height, width)."""


class LinearDenseHead(DenseHead):
    """One linear layer on the encoder's tokens, scaled up: what the features alone can do."""

    def __init__(self, config: ModelConfig, head_config: HeadConfig) -> None:
        """Fresh weights; scores start near zero."""
        super().__init__()
        self.pool = SpectralPool(head_config.spectral_pool, len(config.groups))
        self.dropout = nn.Dropout2d(head_config.dropout)
        channels = compared(self.pool.channels(config.embed_dim), head_config)
        self.classify = start_near_zero(nn.Conv2d(channels, head_config.num_classes, 1))

    def extract(self, encoder: Encoder, image: Tensor) -> list[Tensor]:
        """The last block's map alone, (B, D', h, w)."""
        return feature_maps(encoder, image, pool=self.pool)

    def decode(self, maps: list[Tensor], height: int, width: int) -> Tensor:
        """Classes per patch, interpolated to pixels."""
        logits = self.classify(self.dropout(maps[0]))
        return scale_to(logits, height, width)


class DenseModel(TaskModel):
    """A task model whose output is a map of its image."""

    head: DenseHead

    def __init__(self, config: ModelConfig, head_config: HeadConfig) -> None:
        """Fresh weights."""
        super().__init__(config, head_config)
        self._wear(head_config)

    @contextmanager
    def expecting(self, published: Collection[str]) -> Iterator[None]:
        """Takes on the published head where the checkpoint has one and the model another; keeps it on success alone."""
        if self.head_config.head == "published" or not any(key.startswith("cls_seg.") for key in published):
            yield
            return
        head, head_config = self.head, self.head_config
        fresh: dict[str, Any] = {"head": "published", "spectral_pool": "", "dropout": -1.0, "width": 0, "compare": ""}
        self._wear(dataclasses.replace(head_config, **fresh))
        self.head.to(next(head.parameters())).train(self.training)
        try:
            yield
        except UserError:
            self._wear(head_config, head)
            raise
        logger.warning("head: %s replaced by the checkpoint's published one; build the optimizer now", head_config.head)

    def _wear(self, head_config: HeadConfig, head: DenseHead | None = None) -> None:
        published = head_config.head == "published"
        self.head_config = head_config
        self.head = head or make_dense_head(self.config, head_config)
        self.published_names = {**SpectralModel.published_names, **self.head.published_names}
        # The published head never applies the encoder's final norm; its weights must not wait for gradients.
        self.encoder.norm.requires_grad_(not published)

    def _pad(self, image: Tensor) -> Tensor:
        _, p, q = self.config.patch_size
        bottom, right = -image.shape[-2] % p, -image.shape[-1] % q
        return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image


def make_dense_head(config: ModelConfig, head_config: HeadConfig) -> DenseHead:
    """The head that a configuration names."""
    from spectralgpt.heads.published import PublishedHead
    from spectralgpt.heads.pyramid import PyramidHead

    kinds: dict[str, type[DenseHead]] = {
        "linear": LinearDenseHead,
        "pyramid": PyramidHead,
        "published": PublishedHead,
    }
    return kinds[head_config.head](config, head_config)


def compared(channels: int, head_config: HeadConfig) -> int:
    """Channels of a map of `channels` once two dates have met; the same for one date."""
    both = head_config.task == "change" and head_config.compare == "concat"
    return 3 * channels if both else channels


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


def scale_to(maps: Tensor, height: int, width: int, *, align_corners: bool = False) -> Tensor:
    """Bilinear; the maps themselves where they have the size."""
    if tuple(maps.shape[-2:]) == (height, width):
        return maps
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=align_corners)


def start_near_zero(layer: nn.Conv2d) -> nn.Conv2d:
    """A last layer whose scores hardly differ at first."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
