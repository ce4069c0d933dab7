# SPDX-License-Identifier: Apache-2.0
"""From the visible tokens back to the whole sequence that a decoder reads, in one pass.

Unshuffling, mask token and positions together: each output row is read and written once. The gradient is one pass
over the output's gradient: visible rows are copied out, the others summed for the mask token, all summed for the
positions. Nothing is zero-filled, nothing is added atomically.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectralgpt.ops import _native, reference
from spectralgpt.ops._registry import define
from spectralgpt.ops.patchify import FLOATS, check_same_device

_OP = "assemble_tokens"


def _check_float(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{_OP}: expected {name} of dtype float32, float64, float16 or bfloat16, got {tensor.dtype}")


def _check_ids(ids_restore: Tensor, batch: int, num_keep: int) -> int:
    """L."""
    if ids_restore.dtype != torch.int64:
        raise TypeError(f"{_OP}: expected ids_restore of dtype int64, got {ids_restore.dtype}")
    if ids_restore.dim() != 2 or ids_restore.shape[0] != batch or ids_restore.shape[1] < num_keep:
        raise ValueError(
            f"{_OP}: expected ids_restore of shape ({batch}, L) with L >= {num_keep}, got {tuple(ids_restore.shape)}"
        )
    return ids_restore.shape[1]


def _meta(
    visible: Tensor, mask_token: Tensor, positions: Tensor, ids_restore: Tensor, out_dtype: torch.dtype
) -> Tensor:
    for name, tensor in (("visible", visible), ("mask_token", mask_token), ("positions", positions)):
        _check_float(name, tensor)
    if out_dtype not in FLOATS:
        raise TypeError(f"{_OP}: expected out_dtype float32, float64, float16 or bfloat16, got {out_dtype}")
    if visible.dim() != 3:
        raise ValueError(f"{_OP}: expected visible of shape (B, K, D), got {tuple(visible.shape)}")
    batch, num_keep, channels = visible.shape
    length = _check_ids(ids_restore, batch, num_keep)
    if tuple(mask_token.shape) != (channels,):
        raise ValueError(f"{_OP}: expected mask_token of shape ({channels},), got {tuple(mask_token.shape)}")
    if tuple(positions.shape) != (length, channels):
        raise ValueError(f"{_OP}: expected positions of shape {(length, channels)}, got {tuple(positions.shape)}")
    check_same_device(_OP, visible=visible, mask_token=mask_token, positions=positions, ids_restore=ids_restore)
    return visible.new_empty(batch, length, channels, dtype=out_dtype)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    visible, mask_token, positions, ids_restore, _ = inputs
    ctx.save_for_backward(ids_restore)
    ctx.arguments = (visible.shape[1], visible.dtype, mask_token.dtype, positions.dtype)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    (ids_restore,) = ctx.saved_tensors
    return (*_assemble_tokens_backward(grad, ids_restore, *ctx.arguments), None, None)


_assemble_tokens = define(
    "assemble_tokens(Tensor visible, Tensor mask_token, Tensor positions, Tensor ids_restore, ScalarType out_dtype)"
    " -> Tensor",
    meta=_meta,
    reference=reference.assemble_tokens,
    native=_native.assemble_tokens,
    setup_context=_context,
    backward=_gradient,
)


def _backward_meta(
    grad: Tensor,
    ids_restore: Tensor,
    num_keep: int,
    visible_dtype: torch.dtype,
    mask_dtype: torch.dtype,
    positions_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_float("grad", grad)
    if grad.dim() != 3 or tuple(grad.shape[:2]) != tuple(ids_restore.shape):
        raise ValueError(f"{_OP}: expected a gradient of shape {(*ids_restore.shape, 'D')}, got {tuple(grad.shape)}")
    batch, length, channels = grad.shape
    _check_ids(ids_restore, batch, num_keep)
    return (
        grad.new_empty(batch, num_keep, channels, dtype=visible_dtype),
        grad.new_empty(channels, dtype=mask_dtype),
        grad.new_empty(length, channels, dtype=positions_dtype),
    )


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    grad, ids_restore, *_ = inputs
    ctx.save_for_backward(ids_restore)
    ctx.dtype = grad.dtype


def _double_gradient(ctx: Any, visible: Tensor, mask_token: Tensor, positions: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    (ids_restore,) = ctx.saved_tensors  # linear: the derivative of the gradient is the op itself
    return (_assemble_tokens(visible, mask_token, positions, ids_restore, ctx.dtype), None, None, None, None, None)


_assemble_tokens_backward = define(
    "assemble_tokens_backward(Tensor grad, Tensor ids_restore, SymInt num_keep, ScalarType visible_dtype,"
    " ScalarType mask_dtype, ScalarType positions_dtype) -> (Tensor, Tensor, Tensor)",
    meta=_backward_meta,
    reference=reference.assemble_tokens_backward,
    native=_native.assemble_tokens_backward,
    setup_context=_backward_context,
    backward=_double_gradient,
)


def assemble_tokens(
    visible: Tensor,
    mask_token: Tensor,
    positions: Tensor,
    ids_restore: Tensor,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Puts visible tokens at their places and the mask token everywhere else, and adds positions.

        out[b, l] = (visible[b, r] if r < K else mask_token) + positions[l],   r = ids_restore[b, l]

    Sums are taken in float32 (float64 where an input is) and rounded once.

    Args:
        visible: (B, K, D) float32, float64, float16 or bfloat16.
        mask_token: (D,), of any of these dtypes, not necessarily the same.
        positions: (L, D), likewise.
        ids_restore: (B, L) int64 as in `CubeMask`: the place of token l in [visible, hidden]; each of 0 .. K-1 once.
        out_dtype: dtype of the result; by default the widest of the inputs'.

    Returns:
        (B, L, D).

    Raises:
        ValueError: shapes that do not fit, mixed devices.
        TypeError: other dtypes.
        IndexError: ids_restore lacks a visible place or holds one twice (on CUDA a device assert).

    Example:
        >>> mask = random_cube_mask(torch.arange(2), 576, 0.9, seed=0)
        >>> visible, token, positions = torch.rand(2, 57, 512), torch.zeros(512), torch.rand(576, 512)
        >>> assemble_tokens(visible, token, positions, mask.ids_restore).shape
        torch.Size([2, 576, 512])
    """
    if out_dtype is None:
        out_dtype = torch.promote_types(torch.promote_types(visible.dtype, mask_token.dtype), positions.dtype)
    out: Tensor = _assemble_tokens(visible, mask_token, positions, ids_restore, out_dtype)
    return out
