# SPDX-License-Identifier: Apache-2.0
"""The default decoder of maps: four encoder levels, merged coarse to fine, met by the pixels themselves.

All levels of a plain transformer have the patch's resolution. The earlier ones are scaled up (what a token says about
its inside becomes smaller cells) as in feature pyramids for plain backbones, and merged from the deepest level on.
Edges finer than that come from a shallow branch over the pixels. Its width follows the encoder's, so that a small
encoder is not dwarfed by its head. Windows of a scene see only themselves: norms are over groups of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectralgpt.errors import UserError
from spectralgpt.heads.base import HeadConfig
from spectralgpt.heads.dense import DenseHead, compared, scale_to, start_near_zero
from spectralgpt.heads.features import SpectralPool, feature_maps, pyramid_layers
from spectralgpt.models.config import ModelConfig
from spectralgpt.models.encoder import Encoder

_SCALES = (4, 2, 1, 1)
"""Cells per patch side, shallowest level first."""


class PyramidHead(DenseHead):
    """Top-down feature pyramid and a pixel branch."""

    def __init__(self, config: ModelConfig, head_config: HeadConfig) -> None:
        """Fresh weights; scores start near zero.

        Raises:
            UserError: a width of less than 8.
        """
        super().__init__()
        width = head_config.width or min(256, max(32, config.embed_dim // 2 // 8 * 8))
        if width < 8:
            raise UserError(f"width: expected at least 8 channels for the pyramid, got {width}")
        pixels = max(16, width // 4)
        self.layers = pyramid_layers(config.depth)
        self.pool = SpectralPool(head_config.spectral_pool, len(config.groups))
        channels = compared(self.pool.channels(config.embed_dim), head_config)
        self.lateral = nn.ModuleList(_lateral(channels, width, scale) for scale in _SCALES)
        self.merge = nn.ModuleList(conv_norm(width, width, 3) for _ in _SCALES[1:])
        self.pixels = nn.Conv2d(config.bands, pixels, 3, padding=1)
        self.mix = nn.Sequential(
            conv_norm(width + compared(pixels, head_config), width // 2, 3), nn.Dropout2d(head_config.dropout)
        )
        self.classify = start_near_zero(nn.Conv2d(width // 2, head_config.num_classes, 1))

    def extract(self, encoder: Encoder, image: Tensor) -> list[Tensor]:
        """Four maps of tokens (B, D', h, w), shallowest first, and one of pixels (B, D'', H, W)."""
        return [*feature_maps(encoder, image, self.layers, self.pool), self.pixels(image)]

    def decode(self, maps: list[Tensor], height: int, width: int) -> Tensor:
        """Merges from the deepest level on, then adds the pixels."""
        *levels, pixels = maps
        finer = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        merged = finer.pop()
        for merge in self.merge:
            below = finer.pop()
            merged = merge(below + scale_to(merged, *below.shape[-2:]))
        merged = scale_to(merged, height, width)
        logits: Tensor = self.classify(self.mix(torch.cat([merged, pixels], dim=1)))
        return logits


def conv_norm(channels: int, width: int, kernel: int) -> nn.Sequential:
    """Convolution of the same size, norm over groups of channels, GELU."""
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
        nn.GroupNorm(_norm_groups(width), width),
        nn.GELU(),
    )


def _lateral(channels: int, width: int, scale: int) -> nn.Sequential:
    """Tokens of one level to `width` channels, each patch as scale x scale cells."""
    layers = conv_norm(channels, width, 1)
    if scale > 1:
        layers.append(nn.ConvTranspose2d(width, width, scale, stride=scale))
    return layers


def _norm_groups(width: int) -> int:
    """As many as give groups of at least 8 channels, 32 at most."""
    return next((groups for groups in (32, 16, 8, 4, 2) if width % groups == 0 and width // groups >= 8), 1)
