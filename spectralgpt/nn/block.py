# SPDX-License-Identifier: Apache-2.0
"""The pre-norm transformer block of encoder and decoder: x += attn(norm1(x)); x += mlp(norm2(x)).

Names follow the published checkpoints (`norm1`, `attn.proj`, `mlp.fc1`, ...), but q, k and v are one matrix
product `attn.qkv`. Every module initialises itself as the published model does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spectralgpt.nn.attention import attention

NORM_EPSILON = 1e-6

Recompute = Literal["none", "light", "blocks"]
"""What a backward pass computes again instead of keeping it: nothing, GELU and LayerNorm, or whole blocks."""


class Linear(nn.Linear):
    """torch's, with Xavier-uniform weights and zero bias; stacked matrices are initialised each on its own."""

    def __init__(self, in_features: int, out_features: int, *, parts: int = 1) -> None:
        """As torch's, for `parts` stacked matrices."""
        self.parts = parts
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Called by torch's constructor."""
        for part in self.weight.chunk(self.parts):
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.bias)


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, *, backend: str = "auto") -> None:
        """`num_heads` must divide `dim`; `backend` as for `spectralgpt.nn.attention.attention`."""
        super().__init__()
        self.num_heads = num_heads
        self.backend = backend
        self.qkv = Linear(dim, 3 * dim, parts=3)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.mix(self.qkv(x))

    def mix(self, qkv: Tensor) -> Tensor:
        """From the stacked queries, keys and values (B, N, 3 D) to (B, N, D)."""
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        out: Tensor = self.proj(attention(q, k, v, self.backend).flatten(2))
        return out


class Mlp(nn.Module):
    """Two layers with exact (erf) GELU between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        """`dim` -> `hidden_dim` -> `dim`."""
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class DropPath(nn.Module):
    """Skips a residual branch for a random part of the samples in training; the others are scaled to keep the mean."""

    def __init__(self, rate: float) -> None:
        """`rate` is the chance of a skip, in [0, 1)."""
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if not self.training or self.rate == 0.0:
            return branch
        kept = torch.empty_like(branch[:, :1, :1]).bernoulli_(1.0 - self.rate)
        return branch * kept / (1.0 - self.rate)


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and beside a residual."""

    recompute: Recompute = "none"
    """Set by whoever trains; values and gradients are the same to the bit."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        backend: str = "auto",
    ) -> None:
        """`drop_path` is the chance that training skips a branch for a sample."""
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.attn = Attention(dim, num_heads, backend=backend)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if self.recompute == "none" or not torch.is_grad_enabled():
            return self._run(x)
        if self.recompute == "light":
            return self._run_light(x)
        draws = self.training and self.drop_path.rate > 0  # reading the generator is not allowed in a graph capture
        out: Tensor = checkpoint(self._run, x, use_reentrant=False, preserve_rng_state=draws)
        return out

    def _run(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x

    def _run_light(self, x: Tensor) -> Tensor:
        """Keeps what matrix products give and drops their inputs.

        Recomputation stops as soon as everything dropped is back, which is before the product itself runs again.
        """
        mlp = self.mlp
        x = x + self.drop_path(self.attn.mix(_again(lambda y: self.attn.qkv(self.norm1(y)), x)))
        hidden = _again(lambda y: mlp.fc1(self.norm2(y)), x)
        x = x + self.drop_path(_again(lambda y: mlp.fc2(F.gelu(y)), hidden))
        return x


def _again(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    out: Tensor = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    return out
