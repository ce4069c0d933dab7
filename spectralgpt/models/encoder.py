# SPDX-License-Identifier: Apache-2.0
"""The encoder: image to tokens, either the visible ones of a mask or all of them."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from spectralgpt.models.base import SpectralModel, arrange_bands
from spectralgpt.models.config import ModelConfig
from spectralgpt.nn import NORM_EPSILON, Block, PatchEmbed, PositionEmbedding


class Encoder(SpectralModel):
    """A vision transformer over cubes of bands and pixels, without class token."""

    kind: ClassVar[str] = "encoder"

    def __init__(self, config: ModelConfig) -> None:
        """Fresh weights, drawn as the published model draws them."""
        super().__init__(config)
        dim, depth = config.embed_dim, config.depth
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.positions = PositionEmbedding(config.grid, dim, flat=config.position_embedding == "flat")
        self.blocks = nn.ModuleList(
            Block(
                dim,
                config.num_heads,
                mlp_ratio=config.mlp_ratio,
                drop_path=config.drop_path * i / max(depth - 1, 1),
                backend=config.attention_backend,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)

    def forward(self, image: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encodes the tokens at `ids_keep`, or all of them.

        Args:
            image: (B, C, H, W), normalised, in the model's band order; H and W may differ from the configuration's.
            ids_keep: (B, K) int64 token indices, `(group*h + y)*w + x`.

        Returns:
            (B, K, D), or (B, L, D) without `ids_keep`.

        Raises:
            UserError: wrong band count, or a size that the patch does not divide.
        """
        image = arrange_bands(image, self.config)
        grid = self.config.grid_of(*image.shape[-2:])
        tokens = self.patch_embed(image, ids_keep) + self.positions(grid, ids_keep)
        for block in self.blocks:
            tokens = block(tokens)
        encoded: Tensor = self.norm(tokens)
        return encoded
