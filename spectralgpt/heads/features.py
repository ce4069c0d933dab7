# SPDX-License-Identifier: Apache-2.0
"""From the encoder's tokens to feature maps: the spectral groups of a position become one vector.

A token belongs to a place and to a spectral group. Dense heads want one vector per place: the mean over the groups,
a learnt sum, or all groups one after another. Everything here is aten operators, so that task models export.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spectralgpt.models.config import one_of
from spectralgpt.models.encoder import Encoder

POOLS = ("mean", "concat", "learned")


class SpectralPool(nn.Module):
    """One vector per position from its S spectral groups."""

    def __init__(self, how: str, groups: int) -> None:
        """Starts as the mean where it is learnt.

        Args:
            how: "mean", "concat" (S*D channels, group after group), or "learned": a weighted sum and an offset, the
                published heads' linear layer over the groups.
            groups: S.
        """
        super().__init__()
        one_of("spectral_pool", how, POOLS)
        self.how = how
        self.groups = groups
        if how == "learned":
            self.weight = nn.Parameter(torch.full((1, groups), 1.0 / groups))
            self.bias = nn.Parameter(torch.zeros(1))

    def channels(self, dim: int) -> int:
        """Channels of the result for tokens of `dim`."""
        return dim * self.groups if self.how == "concat" else dim

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, ..., D) -> (B, ..., D), or (B, ..., S*D) for "concat"."""
        if self.how == "mean":
            return tokens.mean(1)
        if self.how == "concat":
            return tokens.movedim(1, -2).flatten(-2)
        return torch.einsum("bs...,s->b...", tokens, self.weight[0]) + self.bias


def by_group(tokens: Tensor, groups: int) -> Tensor:
    """(B, S*N, D) -> (B, S, N, D)."""
    grouped: Tensor = tokens.unflatten(1, (groups, -1))
    return grouped


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, h*w, D) -> (B, D, h, w)."""
    maps: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))
    return maps


def pyramid_layers(depth: int) -> tuple[int, int, int, int]:
    """The blocks behind four levels, evenly spread, the last one among them."""
    first, second, third, fourth = (-(-depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4))
    return first, second, third, fourth


def feature_maps(
    encoder: Encoder,
    image: Tensor,
    layers: Sequence[int] | None = None,
    pool: str | SpectralPool = "mean",
    *,
    norm: bool = True,
) -> list[Tensor]:
    """Feature maps of some encoder blocks, one vector per patch of pixels.

    Args:
        encoder: any.
        image: (B, C, H, W), as for the encoder.
        layers: block indices, as for `Encoder.intermediate`; the last block alone by default.
        pool: "mean" or "concat" over the spectral groups, or a `SpectralPool` (which may be learnt).
        norm: apply the encoder's final LayerNorm to the last block's tokens.

    Returns:
        One (B, D, h, w) per layer, or (B, S*D, h, w) for "concat".

    Raises:
        UserError: an image that does not fit the encoder, or an unknown layer or pooling.
    """
    groups, height, width = encoder.config.grid_of(*image.shape[-2:])
    if not isinstance(pool, SpectralPool):
        one_of("pool", pool, POOLS[:2])
        pool = SpectralPool(pool, groups)
    tokens = encoder.intermediate(image, (-1,) if layers is None else layers, norm=norm)
    return [as_map(pool(by_group(level, groups)), height, width) for level in tokens]


def pooled_features(encoder: Encoder, image: Tensor, pool: str = "mean") -> Tensor:
    """One vector per image, as the classifier's head sees it: tokens averaged over the positions, then normalised.

    Args:
        encoder: any.
        image: (B, C, H, W), as for the encoder.
        pool: "mean" over the spectral groups as well, or "concat" them.

    Returns:
        (B, D), or (B, S*D) for "concat".

    Raises:
        UserError: an image that does not fit the encoder, or an unknown pooling.
    """
    one_of("pool", pool, POOLS[:2])
    (tokens,) = encoder.intermediate(image, norm=False)
    groups = len(encoder.config.groups)
    if pool == "mean":
        pooled: Tensor = encoder.norm(tokens.mean(1))
        return pooled
    grouped: Tensor = encoder.norm(by_group(tokens, groups).mean(2))
    return grouped.flatten(1)
