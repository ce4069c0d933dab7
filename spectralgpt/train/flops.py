# SPDX-License-Identifier: Apache-2.0
"""How much arithmetic a training step is, and how much of it a device does per second.

Only matrix products count, a multiplication and an addition as 2. Recomputation in the backward pass is not
counted: a share of the device's rate is about useful work. The rate is that of a large matrix product measured
on the device itself, which no data sheet overstates.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from spectralgpt.models.config import ModelConfig
from spectralgpt.ops.masking import num_visible

_GEMM_SIZE = {"cuda": 8192, "cpu": 1024}
_GEMM_ROUNDS = 5
_GEMM_SECONDS = 0.5


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs of one sample.

    Attributes:
        encoder: blocks over the visible tokens.
        decoder: blocks over all tokens.
        edges: from the encoder's width to the decoder's, and from there to values.
        patches: from the values of the visible tokens to the encoder's width.
    """

    encoder: int
    decoder: int
    edges: int
    patches: int

    @property
    def step(self) -> int:
        """Forward and backward, which is twice the forward; the image needs no gradient."""
        return 3 * (self.encoder + self.decoder + self.edges) + 2 * self.patches


def forward_flops(config: ModelConfig, mask_ratio: float) -> Flops:
    """Counts a forward pass of the autoencoder over one sample of `config.image_size`."""
    tokens, visible = config.num_tokens, num_visible(config.num_tokens, mask_ratio)
    dim, decoder_dim, values = config.embed_dim, config.decoder_embed_dim, config.num_values
    return Flops(
        encoder=config.depth * _block(visible, dim, config.mlp_ratio),
        decoder=config.decoder_depth * _block(tokens, decoder_dim, config.mlp_ratio),
        edges=2 * visible * dim * decoder_dim + 2 * tokens * decoder_dim * values,
        patches=2 * visible * values * dim,
    )


def _block(tokens: int, dim: int, mlp_ratio: float) -> int:
    """Products per token: 3 d^2 for q, k, v, d^2 after attention, 2 r d^2 in the MLP, 2 N d within attention."""
    return tokens * (8 * dim * dim + 4 * dim * int(dim * mlp_ratio) + 4 * tokens * dim)


@functools.cache
def gemm_rate(device_type: str, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOPs per second of a large square matrix product, the best of a few; measured once per process.

    On the CPU with the threads that PyTorch has at the time. No generator is touched. `clock` gives seconds.
    """
    size = _GEMM_SIZE.get(device_type, 1024)
    ramp = torch.linspace(-1, 1, size * size, device=device_type).view(size, size)  # zeros would run faster on a GPU
    left, right = ramp.to(dtype), ramp.T.contiguous().to(dtype)
    best, spent = float("inf"), 0.0
    for _ in range(_GEMM_ROUNDS):
        if spent > _GEMM_SECONDS:  # a CPU without instructions for this dtype
            break
        _wait(device_type)
        start = clock()
        functional.linear(left, right)  # as layers do it: in 16 bits a CPU may take 20 times as long for plain `mm`
        _wait(device_type)
        seconds = clock() - start
        best, spent = min(best, seconds), spent + seconds
    return 2.0 * size**3 / best


def _wait(device_type: str) -> None:
    if device_type == "cuda":
        torch.cuda.synchronize()
