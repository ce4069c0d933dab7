# SPDX-License-Identifier: Apache-2.0
"""What a step costs without this library: the published maths in plain eager PyTorch, and as a good user writes it.

Each part is the direct reading of the method, as most people would write it: a Conv3d over all cubes and
then a gather of the visible ones, one Linear each for q, k and v, an explicit softmax, masks by argsort of
noise, and targets built in memory. Nothing is made slow on purpose. `ModernAutoencoder` has what PyTorch offers on
top: fused attention, q, k and v in one product; whoever times it compiles it. Parameters have the published names, so
`spectralgpt.reference_state_dict(model)` loads here and both compute the same loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectralgpt.models.config import ModelConfig


class CubeEmbed(nn.Module):
    """Conv3d whose stride is its kernel."""

    def __init__(self, config: ModelConfig) -> None:
        """Sizes from the configuration of our model."""
        super().__init__()
        self.proj = nn.Conv3d(1, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, D)."""
        return self.proj(image[:, None]).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Softmax attention with the whole N x N matrix in memory."""

    def __init__(self, dim: int, num_heads: int) -> None:
        """`num_heads` divides `dim`."""
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        batch, length, dim = x.shape
        head_dim = dim // self.num_heads
        q, k, v = (
            linear(x).reshape(batch, length, self.num_heads, head_dim).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        weights = (q @ k.transpose(-2, -1) * head_dim**-0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, length, dim))


class FusedAttention(nn.Module):
    """The same by torch's own attention kernel, with one product for q, k and v."""

    def __init__(self, dim: int, num_heads: int) -> None:
        """`num_heads` divides `dim`."""
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.register_load_state_dict_pre_hook(self._stack)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    @staticmethod
    def _stack(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
        """Three published matrices become one."""
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{prefix}{name}.{kind}") for name in "qkv"]
            state[f"{prefix}qkv.{kind}"] = torch.cat(parts)


class Mlp(nn.Module):
    """Two Linears with exact GELU between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        """`dim` -> `hidden_dim` -> `dim`."""
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, attention: type[nn.Module] = Attention) -> None:
        """Sizes of one block."""
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainAutoencoder(nn.Module):
    """The masked autoencoder with separable positions and the two-target loss."""

    attention: type[nn.Module] = Attention

    def __init__(self, config: ModelConfig) -> None:
        """Sizes from the configuration of our model."""
        super().__init__()
        self.patch_size = config.patch_size
        self.normalize_targets = config.normalize_targets
        (groups, height, width), dim, decoder_dim = config.grid, config.embed_dim, config.decoder_embed_dim
        self.num_groups, self.num_places = groups, height * width
        self.patch_embed = CubeEmbed(config)
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, height * width, dim))
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, groups, dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, self.attention) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_pos_embed_spatial = nn.Parameter(torch.zeros(1, height * width, decoder_dim))
        self.decoder_pos_embed_temporal = nn.Parameter(torch.zeros(1, groups, decoder_dim))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_dim, config.decoder_num_heads, config.mlp_ratio, self.attention)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_dim, config.num_values)

    def forward(self, image: Tensor, mask_ratio: float, noise: Tensor | None = None) -> Tensor:
        """The loss of one masked reconstruction.

        Args:
            image: (B, C, H, W).
            mask_ratio: part of the tokens to hide.
            noise: (B, L) whose smallest entries are kept; drawn where not given.

        Returns:
            0-d loss.
        """
        tokens = self.patch_embed(image)
        batch, length, dim = tokens.shape
        num_keep = int(length * (1 - mask_ratio))
        noise = torch.rand(batch, length, device=image.device) if noise is None else noise
        ids_shuffle = noise.argsort(dim=1)
        ids_restore = ids_shuffle.argsort(dim=1)
        ids_keep = ids_shuffle[:, :num_keep, None]
        mask = torch.ones(batch, length, device=image.device)
        mask[:, :num_keep] = 0
        mask = mask.gather(1, ids_restore)

        positions = self._positions(self.pos_embed_spatial, self.pos_embed_temporal).expand(batch, -1, -1)
        x = tokens.gather(1, ids_keep.expand(-1, -1, dim)) + positions.gather(1, ids_keep.expand(-1, -1, dim))
        for block in self.blocks:
            x = block(x)

        x = self.decoder_embed(self.norm(x))
        x = torch.cat([x, self.mask_token.expand(batch, length - num_keep, -1)], dim=1)
        x = x.gather(1, ids_restore[:, :, None].expand(-1, -1, x.shape[2]))
        x = x + self._positions(self.decoder_pos_embed_spatial, self.decoder_pos_embed_temporal)
        for block in self.decoder_blocks:
            x = block(x)
        return self._loss(self.decoder_pred(self.decoder_norm(x)), image, mask)

    def _positions(self, spatial: Tensor, spectral: Tensor) -> Tensor:
        return spatial.repeat(1, self.num_groups, 1) + spectral.repeat_interleave(self.num_places, dim=1)

    def _loss(self, prediction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        target = self._cut(image)
        if self.normalize_targets:
            mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6) ** 0.5
        token = (((prediction - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()
        by_group = (len(image), self.num_groups, self.num_places, -1)
        spectrum, predicted = target.reshape(by_group).sum(dim=1), prediction.reshape(by_group).sum(dim=1)
        return token + ((predicted - spectrum) ** 2).mean()

    def _cut(self, image: Tensor) -> Tensor:
        t, p, q = self.patch_size
        batch, bands, height, width = image.shape
        cubes = image.reshape(batch, bands // t, t, height // p, p, width // q, q).permute(0, 1, 3, 5, 2, 4, 6)
        return cubes.reshape(batch, -1, t * p * q)


class ModernAutoencoder(PlainAutoencoder):
    """The same with fused attention; to be compiled, under bf16 autocast, with fused AdamW."""

    attention = FusedAttention
