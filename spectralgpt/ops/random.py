# SPDX-License-Identifier: Apache-2.0
"""Philox4x32-10, the counter-based generator behind every random data decision.

A draw is a pure function of (seed, step, sample id, purpose), so a mask or a crop does not depend on device, batch
split, worker or world size, and resuming needs no generator state. The purposes keep two kinds of decision about the
same sample from sharing bits. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". The same
words come from `csrc/core/philox.h`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


class Purpose(enum.IntEnum):
    """What a draw decides. The values are part of every mask ever drawn: append, never renumber."""

    MASK = 1
    CROP = 2
    FLIP = 3
    SHUFFLE = 4
    SPLIT = 5
    NOISE = 6
    MIX = 7
    ERASE = 8


def _multiply(factor: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of `factor * x`; int64 holds no unsigned 64-bit product, so x goes in two halves."""
    low = factor * (x & 0xFFFF)
    high = factor * (x >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(seed: int | Tensor, sample_ids: Tensor, step: int | Tensor, purpose: int, num_words: int) -> Tensor:
    """Random 32-bit words for each sample.

    Word `4 * d + i` of a sample is output i of Philox4x32-10 with key (seed low, seed high) and counter
    (sample id low, sample id high, step, purpose << 24 | d).

    Args:
        seed: the run's seed, int or 0-d int64 tensor.
        sample_ids: (B,) int64; gives the device.
        step: step or epoch, int or 0-d int64 tensor, low 32 bits used.
        purpose: a `Purpose`.
        num_words: words per sample, at most 2**26.

    Returns:
        (B, num_words) int64, uniform over [0, 2**32).

    Raises:
        ValueError: `sample_ids` is no vector or `num_words` is out of range.
    """
    if sample_ids.dim() != 1:
        raise ValueError(f"philox: expected sample_ids of shape (B,), got {tuple(sample_ids.shape)}")
    if not 0 <= num_words <= 1 << 26:
        raise ValueError(f"philox: expected num_words in [0, 2**26], got {num_words}")
    ids = sample_ids.to(torch.int64)[:, None]
    draws = torch.arange((num_words + 3) // 4, device=ids.device)[None, :]
    zero = torch.zeros_like(ids + draws)
    counter = (
        zero + (ids & _WORD),
        zero + ((ids >> 32) & _WORD),
        zero + (step & _WORD),
        zero + draws + (int(purpose) << 24),
    )
    words = list(philox4x32(counter, (seed & _WORD, (seed >> 32) & _WORD)))
    return torch.stack(words, dim=-1).flatten(1)[:, :num_words]


def philox4x32(counter: Sequence[Tensor], key: tuple[int | Tensor, int | Tensor]) -> Sequence[Tensor]:
    """The bare generator: four 32-bit counter words and two key words, as int64, to four random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3
