# SPDX-License-Identifier: Apache-2.0
"""Which tokens are hidden: masks that are a function of (seed, step, sample id), and the published argsort of noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spectralgpt.ops import _native, reference
from spectralgpt.ops._registry import define
from spectralgpt.ops.patchify import check_same_device

MAX_TOKENS = 1 << 26  # the draw counter has 24 bits, four words each


class CubeMask(NamedTuple):
    """A mask over the tokens of each sample.

    Attributes:
        ids_keep: (B, K) int64, the visible tokens.
        ids_restore: (B, L) int64, where each token stands in the sequence [visible tokens, hidden tokens].
        mask: (B, L) bool, True = removed.
    """

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor


def num_visible(num_tokens: int, mask_ratio: float) -> int:
    """K = int(L * (1 - mask_ratio)), truncated in double precision as published (57 of 576 at 0.9)."""
    return _num_visible("num_visible", num_tokens, mask_ratio)


def _num_visible(op: str, num_tokens: int, mask_ratio: float) -> int:
    if not isinstance(mask_ratio, int | float):
        raise TypeError(f"{op}: expected mask_ratio as a number, got {mask_ratio!r}")
    if not hasattr(num_tokens, "__index__"):
        raise TypeError(f"{op}: expected num_tokens as an int, got {num_tokens!r}")
    if not 0.0 <= mask_ratio < 1.0:
        raise ValueError(f"{op}: expected mask_ratio in [0, 1), got {mask_ratio}")
    return int(num_tokens * (1.0 - mask_ratio))


def _check_counts(op: str, num_tokens: int, num_keep: int) -> None:
    if not 0 < num_tokens <= MAX_TOKENS:
        raise ValueError(f"{op}: expected num_tokens in [1, {MAX_TOKENS}], got {num_tokens}")
    if not 0 <= num_keep <= num_tokens:
        raise ValueError(f"{op}: expected num_keep in [0, {num_tokens}], got {num_keep}")


def _empty_mask(like: Tensor, batch: int, num_tokens: int, num_keep: int) -> CubeMask:
    return CubeMask(
        like.new_empty(batch, num_keep, dtype=torch.int64),
        like.new_empty(batch, num_tokens, dtype=torch.int64),
        like.new_empty(batch, num_tokens, dtype=torch.bool),
    )


# --------------------------------------------------------------------------------------------------- random_cube_mask


def _random_meta(sample_ids: Tensor, num_tokens: int, num_keep: int, seed: Tensor, step: Tensor) -> tuple[Tensor, ...]:
    op = "random_cube_mask"
    if sample_ids.dtype != torch.int64:
        raise TypeError(f"{op}: expected sample_ids of dtype int64, got {sample_ids.dtype}")
    if sample_ids.dim() != 1:
        raise ValueError(f"{op}: expected sample_ids of shape (B,), got {tuple(sample_ids.shape)}")
    for name, value in (("seed", seed), ("step", step)):
        if value.dtype != torch.int64 or value.dim() != 0:
            raise TypeError(
                f"{op}: expected {name} as an int or a 0-d int64 tensor, "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
    check_same_device(op, sample_ids=sample_ids, seed=seed, step=step)
    _check_counts(op, num_tokens, num_keep)
    return tuple(_empty_mask(sample_ids, sample_ids.shape[0], num_tokens, num_keep))


_random_cube_mask = define(
    "random_cube_mask(Tensor sample_ids, SymInt num_tokens, SymInt num_keep, Tensor seed, Tensor step)"
    " -> (Tensor, Tensor, Tensor)",
    meta=_random_meta,
    reference=reference.random_cube_mask,
    native=_native.random_cube_mask,
)


def _key(name: str, value: int | Tensor, device: torch.device) -> Tensor:
    """A 0-d tensor on the device; an int is written by a fill, which a captured graph would freeze."""
    if isinstance(value, Tensor):
        return value
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"random_cube_mask: expected {name} as a 0-d int64 tensor while a CUDA graph is captured, "
            "got an int, which every replay would repeat"
        )
    if not isinstance(value, int):
        raise TypeError(f"random_cube_mask: expected {name} as an int or a 0-d int64 tensor, got {value!r}")
    if not 0 <= value < 1 << 63:
        raise ValueError(f"random_cube_mask: expected {name} in [0, 2^63), got {value}")
    return torch.full((), value, dtype=torch.int64, device=device)


def random_cube_mask(
    sample_ids: Tensor, num_tokens: int, mask_ratio: float, *, seed: int | Tensor, step: int | Tensor = 0
) -> CubeMask:
    """Hides a random part of each sample's tokens, the same on every device and in every batch split.

    A sample keeps the K tokens with the smallest (Philox word, index) for the key (seed, step, sample id): a uniform
    draw over all subsets.

    Args:
        sample_ids: (B,) int64, one number per sample; gives the device.
        num_tokens: L.
        mask_ratio: part to hide, in [0, 1); K = int(L * (1 - mask_ratio)).
        seed: int or 0-d int64 tensor on the device of `sample_ids`.
        step: int or 0-d int64 tensor there, low 32 bits used. A captured CUDA graph needs tensors.

    Returns:
        `CubeMask` with `ids_keep` ascending and the removed tokens ascending after them.

    Raises:
        ValueError: a ratio or count out of range, mixed devices, an int while a CUDA graph is captured.
        TypeError: ids, seed or step of another dtype.

    Example:
        >>> random_cube_mask(torch.arange(4), 576, 0.9, seed=0).ids_keep.shape
        torch.Size([4, 57])
    """
    device = sample_ids.device
    num_keep = _num_visible("random_cube_mask", num_tokens, mask_ratio)
    seed, step = _key("seed", seed, device), _key("step", step, device)
    return CubeMask(*_random_cube_mask(sample_ids, num_tokens, num_keep, seed, step))


# ----------------------------------------------------------------------------------------------- cube_mask_from_noise


def _noise_meta(noise: Tensor, num_keep: int) -> tuple[Tensor, ...]:
    op = "cube_mask_from_noise"
    if noise.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: expected noise of dtype float32 or float64, got {noise.dtype}")
    if noise.dim() != 2:
        raise ValueError(f"{op}: expected noise of shape (B, L), got {tuple(noise.shape)}")
    _check_counts(op, noise.shape[1], num_keep)
    return tuple(_empty_mask(noise, noise.shape[0], noise.shape[1], num_keep))


_cube_mask_from_noise = define(
    "cube_mask_from_noise(Tensor noise, SymInt num_keep) -> (Tensor, Tensor, Tensor)",
    meta=_noise_meta,
    reference=reference.cube_mask_from_noise,
    native=_native.cube_mask_from_noise,
)


def cube_mask_from_noise(noise: Tensor, mask_ratio: float) -> CubeMask:
    """The published masking: keeps the tokens of smallest noise, in noise order.

    Args:
        noise: (B, L) float32 or float64; equal noise counts in index order, NaN as largest.
        mask_ratio: part to hide, in [0, 1); K = int(L * (1 - mask_ratio)).

    Returns:
        `CubeMask` with `ids_keep` in the order of the noise.

    Raises:
        ValueError: wrong shape or ratio.
        TypeError: noise of another dtype.
    """
    num_tokens = noise.shape[-1] if noise.dim() else 0
    return CubeMask(*_cube_mask_from_noise(noise, _num_visible("cube_mask_from_noise", num_tokens, mask_ratio)))
