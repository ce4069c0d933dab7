# SPDX-License-Identifier: Apache-2.0
"""Decoders of maps: what they have in common, and the plainest of them.

A dense head works in two halves with the comparison of two dates between them: `extract` makes maps from one image,
`decode` makes logits from maps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from spectralgpt.heads.base import HeadConfig
from spectralgpt.heads.features import SpectralPool, feature_maps
from spectralgpt.models.config import ModelConfig
from spectralgpt.models.encoder import Encoder


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


def compared(channels: int, head_config: HeadConfig) -> int:
    """Channels of a map of `channels` once two dates have met; the same for one date."""
    both = head_config.task == "change" and head_config.compare == "concat"
    return 3 * channels if both else channels


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
