# SPDX-License-Identifier: Apache-2.0
"""Cutting an image cube into tokens and putting it together again: pure permutations, any dtype, exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectralgpt.ops import _native, reference
from spectralgpt.ops._registry import define

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_patch(op: str, patch_size: Sequence[int]) -> tuple[int, int, int]:
    """The patch (t, p, q), all at least 1."""
    if len(patch_size) != 3 or any(size < 1 for size in patch_size):
        raise ValueError(
            f"{op}: expected patch_size of three positive sizes (bands, rows, columns), got {tuple(patch_size)}"
        )
    return patch_size[0], patch_size[1], patch_size[2]


def sizes(op: str, name: str, value: Sequence[int]) -> Sequence[int]:
    """The argument, or our error where torch would speak of its own types."""
    if isinstance(value, int) or not all(hasattr(size, "__index__") for size in value):
        raise TypeError(f"{op}: expected {name} of three sizes (bands, rows, columns), got {value!r}")
    return value


def check_grid(op: str, image_size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, int]:
    """(L, P) of an image of (C, H, W) under the patch; each size must be divisible."""
    patch = check_patch(op, patch_size)
    if len(image_size) != 3:
        raise ValueError(f"{op}: expected image_size (bands, height, width), got {tuple(image_size)}")
    for what, size, by in zip(("bands", "height", "width"), image_size, patch, strict=True):
        if size % by or size < by:
            raise ValueError(
                f"{op}: expected {what} divisible by the patch's {by}, got {size}; "
                "crop, pad or choose another patch_size"
            )
    return reference.num_tokens(image_size, patch), patch[0] * patch[1] * patch[2]


def check_image(op: str, image: Tensor, patch_size: Sequence[int]) -> tuple[int, int]:
    """(L, P) of a (B, C, H, W) image."""
    if image.dim() != 4:
        raise ValueError(f"{op}: expected image of shape (B, C, H, W), got {tuple(image.shape)}")
    return check_grid(op, image.shape[1:], patch_size)


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    """All tensors live on one device."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if len({tensor.device for tensor in present.values()}) > 1:
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in present.items())
        raise ValueError(f"{op}: expected all tensors on one device, got {found}")


# --------------------------------------------------------------------------------------------------------- patchify3d


def _patchify_meta(image: Tensor, patch_size: Sequence[int]) -> Tensor:
    num_tokens, num_values = check_image("patchify3d", image, patch_size)
    return image.new_empty(image.shape[0], num_tokens, num_values)


def _patchify_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    image, ctx.patch_size = inputs
    ctx.image_size = image.shape[1:]


def _patchify_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
    return _unpatchify3d(grad, ctx.image_size, ctx.patch_size), None


_patchify3d = define(
    "patchify3d(Tensor image, int[] patch_size) -> Tensor",
    meta=_patchify_meta,
    reference=reference.patchify3d,
    native=_native.patchify3d,
    setup_context=_patchify_context,
    backward=_patchify_backward,
)


def patchify3d(image: Tensor, patch_size: Sequence[int] = (3, 8, 8)) -> Tensor:
    """Cuts an image cube into tokens.

    Token `(g*h + y)*w + x` holds bands `g*t ...`, rows `y*p ...`, columns `x*p ...` of the image, ordered band, row,
    column.

    Args:
        image: (B, C, H, W), any dtype, any strides; C, H, W divisible by the patch.
        patch_size: (t, p, p) bands, rows and columns of a token.

    Returns:
        (B, L, P), the image's dtype.

    Raises:
        ValueError: wrong shape or a size that the patch does not divide.

    Example:
        >>> patchify3d(torch.zeros(2, 12, 96, 96)).shape
        torch.Size([2, 576, 192])
    """
    tokens: Tensor = _patchify3d(image, sizes("patchify3d", "patch_size", patch_size))
    return tokens


# ------------------------------------------------------------------------------------------------------- unpatchify3d


def _unpatchify_meta(tokens: Tensor, image_size: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    num_tokens, num_values = check_grid("unpatchify3d", image_size, patch_size)
    if tokens.dim() != 3 or tokens.shape[1] != num_tokens or tokens.shape[2] != num_values:
        raise ValueError(
            f"unpatchify3d: expected tokens of shape (B, {num_tokens}, {num_values}) for an image of "
            f"{tuple(image_size)} in patches of {tuple(patch_size)}, got {tuple(tokens.shape)}"
        )
    return tokens.new_empty(tokens.shape[0], *image_size)


def _unpatchify_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    _, _, ctx.patch_size = inputs


def _unpatchify_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
    return _patchify3d(grad, ctx.patch_size), None, None


_unpatchify3d = define(
    "unpatchify3d(Tensor tokens, SymInt[] image_size, int[] patch_size) -> Tensor",
    meta=_unpatchify_meta,
    reference=reference.unpatchify3d,
    native=_native.unpatchify3d,
    setup_context=_unpatchify_context,
    backward=_unpatchify_backward,
)


def unpatchify3d(tokens: Tensor, image_size: Sequence[int], patch_size: Sequence[int] = (3, 8, 8)) -> Tensor:
    """Puts tokens together to an image cube; the inverse of `patchify3d`.

    Args:
        tokens: (B, L, P), any dtype.
        image_size: (C, H, W) of the image.
        patch_size: (t, p, p) bands, rows and columns of a token.

    Returns:
        (B, C, H, W), the tokens' dtype.

    Raises:
        ValueError: the tokens do not fit the image and patch.
    """
    op = "unpatchify3d"
    image: Tensor = _unpatchify3d(tokens, sizes(op, "image_size", image_size), sizes(op, "patch_size", patch_size))
    return image


# -------------------------------------------------------------------------------------------------- gather_patchify3d


def _check_ids_shape(op: str, ids_keep: Tensor, batch: int) -> None:
    if ids_keep.dtype != torch.int64:
        raise TypeError(f"{op}: expected ids_keep of dtype int64, got {ids_keep.dtype}")
    if ids_keep.dim() != 2 or ids_keep.shape[0] != batch:
        raise ValueError(f"{op}: expected ids_keep of shape ({batch}, K), got {tuple(ids_keep.shape)}")


def _gather_meta(image: Tensor, ids_keep: Tensor, patch_size: Sequence[int]) -> Tensor:
    op = "gather_patchify3d"
    _, num_values = check_image(op, image, patch_size)
    if not image.is_floating_point():
        raise TypeError(f"{op}: expected a floating image, got {image.dtype}; normalise the raster first")
    _check_ids_shape(op, ids_keep, image.shape[0])
    check_same_device(op, image=image, ids_keep=ids_keep)
    return image.new_empty(image.shape[0], ids_keep.shape[1], num_values)


def _gather_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    image, ids_keep, ctx.patch_size = inputs
    ctx.image_size = image.shape[1:]
    ctx.save_for_backward(ids_keep)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:  # noqa: ANN401
    (ids_keep,) = ctx.saved_tensors
    return _gather_patchify3d_backward(grad, ids_keep, ctx.image_size, ctx.patch_size), None, None


_gather_patchify3d = define(
    "gather_patchify3d(Tensor image, Tensor ids_keep, int[] patch_size) -> Tensor",
    meta=_gather_meta,
    reference=reference.gather_patchify3d,
    native=_native.gather_patchify3d,
    setup_context=_gather_context,
    backward=_gather_backward,
)


def _gather_backward_meta(
    grad: Tensor, ids_keep: Tensor, image_size: Sequence[int], patch_size: Sequence[int]
) -> Tensor:
    op = "gather_patchify3d_backward"
    _, num_values = check_grid(op, image_size, patch_size)
    _check_ids_shape(op, ids_keep, grad.shape[0])
    if tuple(grad.shape) != (*ids_keep.shape, num_values):
        raise ValueError(f"{op}: expected grad of shape {(*ids_keep.shape, num_values)}, got {tuple(grad.shape)}")
    if not grad.is_floating_point():
        raise TypeError(f"{op}: expected a floating grad, got {grad.dtype}")
    check_same_device(op, grad=grad, ids_keep=ids_keep)
    return grad.new_empty(grad.shape[0], *image_size)


def _gather_backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    _, ids_keep, _, ctx.patch_size = inputs
    ctx.save_for_backward(ids_keep)


def _gather_double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
    (ids_keep,) = ctx.saved_tensors
    return _gather_patchify3d(grad, ids_keep, ctx.patch_size), None, None, None


_gather_patchify3d_backward = define(
    "gather_patchify3d_backward(Tensor grad, Tensor ids_keep, SymInt[] image_size, int[] patch_size) -> Tensor",
    meta=_gather_backward_meta,
    reference=reference.gather_patchify3d_backward,
    native=_native.gather_patchify3d_backward,
    setup_context=_gather_backward_context,
    backward=_gather_double_backward,
)


def gather_patchify3d(image: Tensor, ids_keep: Tensor, patch_size: Sequence[int] = (3, 8, 8)) -> Tensor:
    """The visible tokens only: `patchify3d(image)` at `ids_keep`, reading no hidden pixel.

    Args:
        image: (B, C, H, W) floating, any strides.
        ids_keep: (B, K) int64 token ids, as in `CubeMask.ids_keep`.
        patch_size: (t, p, p) bands, rows and columns of a token.

    Returns:
        (B, K, P), the image's dtype.

    Raises:
        ValueError: wrong shapes, mixed devices.
        TypeError: an integer image or ids that are not int64.
        IndexError: an id outside the grid (on CUDA a device assert, as everywhere in torch).
    """
    tokens: Tensor = _gather_patchify3d(image, ids_keep, sizes("gather_patchify3d", "patch_size", patch_size))
    return tokens
