# SPDX-License-Identifier: Apache-2.0
"""The 3D masked autoencoder: encode what is visible, rebuild everything, score two targets.

The encoder works on a tenth of the tokens; the light decoder sees all of them, so at high masking it is the
larger cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from spectralgpt import ops
from spectralgpt.errors import UserError
from spectralgpt.models.base import SpectralModel, arrange_bands
from spectralgpt.models.config import ModelConfig
from spectralgpt.models.encoder import Encoder
from spectralgpt.nn import NORM_EPSILON, Block, Grid, Linear, PositionEmbedding


class AutoencoderOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        loss: 0-d, the weighted sum; the only part to differentiate.
        token_loss: 0-d, detached, mean squared error of the scored tokens.
        spectral_loss: 0-d, detached, mean squared error of the sums over the spectral groups.
        prediction: (B, L, P), every token as the decoder rebuilds it.
        latent: (B, K, D), the encoder's visible tokens.
    """

    loss: Tensor
    token_loss: Tensor
    spectral_loss: Tensor
    prediction: Tensor
    latent: Tensor


class Decoder(nn.Module):
    """From the encoder's visible tokens to the values of all tokens."""

    def __init__(self, config: ModelConfig) -> None:
        """Fresh weights, drawn as the published model draws them."""
        super().__init__()
        dim = config.decoder_embed_dim
        self.embed = Linear(config.embed_dim, dim)
        # Two-dimensional, so that "weight decay for matrices only" decays it, as the published training does.
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(1, dim), std=0.02))
        self.positions = PositionEmbedding(config.grid, dim, flat=config.position_embedding == "flat")
        self.blocks = nn.ModuleList(
            Block(dim, config.decoder_num_heads, mlp_ratio=config.mlp_ratio, backend=config.attention_backend)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.pred = Linear(dim, config.num_values)

    def forward(self, latent: Tensor, ids_restore: Tensor, grid: Grid) -> Tensor:
        """Rebuilds all tokens.

        Args:
            latent: (B, K, D) visible tokens.
            ids_restore: (B, L) int64, as in `ops.CubeMask`.
            grid: (S, h, w) of the image, L tokens.

        Returns:
            (B, L, P).
        """
        tokens = ops.assemble_tokens(self.embed(latent), self.mask_token[0], self.positions(grid), ids_restore)
        for block in self.blocks:
            tokens = block(tokens)
        prediction: Tensor = self.pred(self.norm(tokens))
        return prediction


class Autoencoder(SpectralModel):
    """Encoder, decoder and the reconstruction loss."""

    kind: ClassVar[str] = "autoencoder"
    published_names: Mapping[str, str] = {
        "decoder.mask_token": "mask_token",
        "decoder.": "decoder_",
        **SpectralModel.published_names,
    }

    def __init__(self, config: ModelConfig) -> None:
        """Fresh weights, drawn as the published model draws them."""
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(
        self,
        image: Tensor,
        mask: ops.CubeMask,
        valid: Tensor | None = None,
        *,
        token_weight: Tensor | None = None,
        spectral_weight: Tensor | None = None,
    ) -> AutoencoderOutput:
        """One masked reconstruction and its loss.

        Args:
            image: (B, C, H, W), normalised, in the model's band order.
            mask: which tokens the encoder sees, for this image's L tokens.
            valid: (B, L) bool, False for tokens that hold nodata and must not be scored.
            token_weight: 0-d, instead of the configuration's: a trainer puts the share of this batch in a larger one
                here, so that the gradient needs no scaling afterwards.
            spectral_weight: likewise.

        Raises:
            UserError: an image or a mask that does not fit the model.
        """
        target = arrange_bands(image, self.config)
        grid = self.config.grid_of(*image.shape[-2:])
        expected = (image.shape[0], grid[0] * grid[1] * grid[2])
        if tuple(mask.ids_restore.shape) != expected:
            raise UserError(
                f"mask: expected one over {expected} tokens for this image, got {tuple(mask.ids_restore.shape)}"
            )
        latent = self.encoder(image, mask.ids_keep)
        prediction = self.decoder(latent, mask.ids_restore, grid)
        loss = ops.reconstruction_loss(
            prediction,
            target,
            mask.mask,
            self.config.patch_size,
            valid=valid,
            normalize_targets=self.config.normalize_targets,
            spectral_targets=self.config.spectral_targets,
            token_weight=self.config.token_weight if token_weight is None else token_weight,
            spectral_weight=self.config.spectral_weight if spectral_weight is None else spectral_weight,
        )
        return AutoencoderOutput(loss.total, loss.token, loss.spectral, prediction, latent)
