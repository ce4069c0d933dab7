# SPDX-License-Identifier: Apache-2.0
"""The encoder: image to tokens, either the visible ones of a mask or all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from spectralgpt.errors import UserError
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
        tokens = self._embed(image, ids_keep)
        for block in self.blocks:
            tokens = block(tokens)
        encoded: Tensor = self.norm(tokens)
        return encoded

    def intermediate(self, image: Tensor, layers: Sequence[int] = (-1,), *, norm: bool = True) -> list[Tensor]:
        """The tokens behind some of the blocks; blocks after the last one asked for do not run.

        Args:
            image: (B, C, H, W), as for `forward`.
            layers: block indices, negative ones from the end; the result has their order.
            norm: apply the final LayerNorm where the last block is asked for, so that it is what `forward` gives.

        Returns:
            One (B, L, D) per layer.

        Raises:
            UserError: as `forward`, or a layer that the encoder does not have.
        """
        depth = len(self.blocks)
        for layer in layers:
            if not -depth <= layer < depth:
                raise UserError(f"layers: expected block indices from {-depth} to {depth - 1}, got {layer}")
        wanted = [layer % depth for layer in layers]
        tokens, kept = self._embed(image), {}
        for index, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            tokens = block(tokens)
            if index in wanted:
                kept[index] = self.norm(tokens) if norm and index == depth - 1 else tokens
        return [kept[index] for index in wanted]

    def _embed(self, image: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        image = arrange_bands(image, self.config)
        grid = self.config.grid_of(*image.shape[-2:])
        tokens: Tensor = self.patch_embed(image, ids_keep) + self.positions(grid, ids_keep)
        return tokens
