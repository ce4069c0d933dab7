# SPDX-License-Identifier: Apache-2.0
"""The decoder that the published SegMunich and OSCD models share, layer for layer.

One map (the last block before the final norm, its spectral groups summed by learnt weights) feeds four levels by
transposed convolutions; a pyramid pooling module looks at the coarsest; three steps merge towards the finest, and all
four results meet there. Only its widths (multiples of 256) are as published: classes, embedding, image and patch size
are free. Interpolation aligns corners here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from spectralgpt.errors import UserError
from spectralgpt.heads.base import HeadConfig
from spectralgpt.heads.dense import DenseHead, scale_to
from spectralgpt.heads.features import SpectralPool, feature_maps
from spectralgpt.models.config import ModelConfig
from spectralgpt.models.encoder import Encoder

_LEVELS = ((2, 1, 8), (2, 2, 4), (4, 4, 2), (8, 8, 1))
"""Finest first: inner width, outer width (in units of `width`), cells per patch side."""
_POOLED = (1, 2, 3, 6)


class PublishedHead(DenseHead):
    """The published pyramid; 23.8 million weights at its published width."""

    published_names: ClassVar[Mapping[str, str]] = {
        "head.pool.": "fc.0.",
        "head.levels.": "conv",
        "head.context.pools.": "decoder.PPMHead.psp_modules.",
        "head.context.final.": "decoder.PPMHead.final.",
        "head.top.": "decoder.conv_x1.",
        "head.fuse_all.": "decoder.fuse_all.",
        "head.classify.": "cls_seg.0.",
        **{f"head.enter.{i}.": f"decoder.Conv_fuse{i + 1}." for i in range(3)},
        **{f"head.leave.{i}.": f"decoder.Conv_fuse{i + 1}_." for i in range(3)},
    }

    def __init__(self, config: ModelConfig, head_config: HeadConfig) -> None:
        """Fresh weights.

        Raises:
            UserError: a width that the norms' groups do not divide, or a comparison that is not the published one.
        """
        super().__init__()
        width, dropout = head_config.width or 256, head_config.dropout
        if width % 16:
            raise UserError(f"width: expected a multiple of 16 for the published head, got {width}")
        if head_config.task == "change" and head_config.compare != "difference":
            raise UserError(f"compare: expected difference for the published head, got {head_config.compare}")
        early = 0.0 if head_config.task == "change" else dropout  # change drops in the fusions alone
        self.pool = SpectralPool(head_config.spectral_pool, len(config.groups))
        channels = self.pool.channels(config.embed_dim)
        sizes = [(inner * width, outer * width, scale) for inner, outer, scale in _LEVELS]
        self.levels = nn.ModuleList(_level(channels, *size, early) for size in sizes)
        finest, fine, coarse, coarsest = (outer for _, outer, _ in sizes)
        self.context = Context(coarsest, width, early)
        self.top = nn.Conv2d(width, width, 1)
        self.enter = nn.ModuleList(_fuse(size, width, dropout) for size in (coarse, fine, finest))
        self.leave = nn.ModuleList(_fuse(width, width, dropout) for _ in range(3))
        self.fuse_all = _fuse(4 * width, width, dropout)
        self.classify = nn.Conv2d(width, head_config.num_classes, 3, padding=1)

    def extract(self, encoder: Encoder, image: Tensor) -> list[Tensor]:
        """The last block's map (B, D, h, w), before the encoder's final norm."""
        return feature_maps(encoder, image, pool=self.pool, norm=False)

    def decode(self, maps: list[Tensor], height: int, width: int) -> Tensor:
        """Logits at the finest level, scaled to the image where the patch is not 8 pixels wide."""
        finest, fine, coarse, coarsest = (level(maps[0]) for level in self.levels)
        results = [self.context(coarsest)]
        carried = self.top(_double(results[0]))
        for enter, leave, level in zip(self.enter, self.leave, (coarse, fine, finest), strict=True):
            results.append(leave(carried + enter(level)))
            carried = _double(results[-1])
        size = finest.shape[-2:]
        merged = self.fuse_all(torch.cat([scale_to(part, *size, align_corners=True) for part in results], dim=1))
        return scale_to(self.classify(merged), height, width)


class Context(nn.Module):
    """Pyramid pooling: maxima over 1, 2 x 2, 3 x 3 and 6 x 6 regions beside the map itself."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        """`channels` in, `width` out."""
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveMaxPool2d(size), nn.Conv2d(channels, width, 1)) for size in _POOLED
        )
        self.final = _fuse(channels + len(_POOLED) * width, width, dropout)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, width, h, w)."""
        size = maps.shape[-2:]
        parts = [scale_to(pool(maps), *size, align_corners=True) for pool in self.pools]
        out: Tensor = self.final(torch.cat([*parts, maps], dim=1))
        return out


def _level(channels: int, inner: int, outer: int, scale: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, inner, 1), nn.GroupNorm(32, inner), nn.GELU()]
    if scale > 1:
        layers.append(nn.ConvTranspose2d(inner, outer, scale, stride=scale))
    return nn.Sequential(*layers, nn.Dropout(dropout))


def _fuse(channels: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(16, width), nn.GELU(), nn.Dropout(dropout))


def _double(maps: Tensor) -> Tensor:
    return scale_to(maps, 2 * maps.shape[-2], 2 * maps.shape[-1], align_corners=True)
