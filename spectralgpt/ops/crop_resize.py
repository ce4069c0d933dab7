# SPDX-License-Identifier: Apache-2.0
"""Random resized crops of a whole batch in one pass, from raw integers to normalised floats.

Images of different sizes lie behind each other in one buffer, so that a batch is one copy to the accelerator and
16-bit pixels travel as 16 bits. Every output value is written once: crop, bicubic resize, flip, offset and scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectralgpt.ops import _native, reference
from spectralgpt.ops._registry import define
from spectralgpt.ops.patchify import FLOATS, check_same_device

_OP = "crop_resize"
_PIXELS = (torch.uint8, torch.uint16, torch.int16, *FLOATS)


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{_OP}: expected {name} of dtype {dtype}, got {tensor.dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{_OP}: expected {name} of shape {shape}, got {tuple(tensor.shape)}")


def _meta(
    pixels: Tensor,
    layout: Tensor,
    boxes: Tensor,
    flips: Tensor,
    size: int,
    bands: int,
    offset: Tensor,
    scale: Tensor,
    antialias: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    if pixels.dtype not in _PIXELS:
        raise TypeError(f"{_OP}: expected pixels of dtype uint8, uint16, int16 or floating, got {pixels.dtype}")
    if pixels.dim() != 1:
        raise ValueError(f"{_OP}: expected pixels as a packed 1-D buffer, got shape {tuple(pixels.shape)}")
    if out_dtype not in FLOATS:
        raise TypeError(f"{_OP}: expected out_dtype float32, float64, float16 or bfloat16, got {out_dtype}")
    if size < 1 or bands < 1:
        raise ValueError(f"{_OP}: expected size and bands of at least 1, got {size} and {bands}")
    batch = layout.shape[0] if layout.dim() else 0
    _check("layout", layout, (batch, 3), torch.int64)
    _check("boxes", boxes, (batch, 4), torch.int32)
    _check("flips", flips, (batch, 2), torch.bool)
    wide = reference.sum_dtype(pixels)
    _check("offset", offset, (batch, bands), wide)
    _check("scale", scale, (batch, bands), wide)
    check_same_device(_OP, pixels=pixels, layout=layout, boxes=boxes, flips=flips, offset=offset, scale=scale)
    return pixels.new_empty(batch, bands, size, size, dtype=out_dtype)


_crop_resize = define(
    "crop_resize(Tensor pixels, Tensor layout, Tensor boxes, Tensor flips, SymInt size, SymInt bands, Tensor offset,"
    " Tensor scale, bool antialias, ScalarType out_dtype) -> Tensor",
    meta=_meta,
    reference=reference.crop_resize,
    native=_native.crop_resize,
)


def crop_resize(
    pixels: Tensor,
    layout: Tensor,
    boxes: Tensor,
    flips: Tensor,
    size: int,
    *,
    bands: int,
    offset: Tensor,
    scale: Tensor,
    antialias: bool = True,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Cuts a box out of each image of a packed batch, resizes it to a square, flips and normalises it.

    `out[b, c] = (resize(box of image b, band c) - offset[b, c]) * scale[b, c]`, the resize being torch's bicubic
    (`F.interpolate`, `align_corners=False`) of the box alone: no pixel outside it is read. Sums are taken in float32
    (float64 for float64 pixels).

    Args:
        pixels: (N,) uint8, uint16, int16, float32, float64, float16 or bfloat16: images (bands, H, W) one after
            another.
        layout: (B, 3) int64, of each image the first value in `pixels`, its height and its width.
        boxes: (B, 4) int32, first row, first column, height and width inside the image.
        flips: (B, 2) bool, whether to flip vertically and horizontally after the resize.
        size: rows and columns of the result.
        bands: bands of every image.
        offset: (B, bands) float32 (float64 for float64 pixels), subtracted.
        scale: (B, bands), likewise, multiplied afterwards.
        antialias: torch's antialiased bicubic (coefficient -0.5, wider when it shrinks), or its plain one (-0.75).
        out_dtype: floating dtype of the result.

    Returns:
        (B, bands, size, size). Raw pixels are data: there is no gradient.

    Raises:
        ValueError: shapes that do not fit, mixed devices, pixels that require a gradient.
        TypeError: other dtypes.
        IndexError: an image outside the buffer or a box outside its image (on CUDA a device assert).

    Example:
        >>> image = torch.randint(10_000, (12, 64, 80)).to(torch.uint16)
        >>> layout, boxes = torch.tensor([[0, 64, 80]]), torch.tensor([[0, 8, 64, 64]], dtype=torch.int32)
        >>> flips, offset = torch.tensor([[False, True]]), torch.zeros(1, 12)
        >>> scale = torch.full((1, 12), 1e-4)
        >>> crop_resize(image.flatten(), layout, boxes, flips, 96, bands=12, offset=offset, scale=scale).shape
        torch.Size([1, 12, 96, 96])
    """
    if any(tensor.requires_grad for tensor in (pixels, offset, scale)):
        raise ValueError(f"{_OP}: expected pixels, offset and scale without gradient, got one that requires it")
    out: Tensor = _crop_resize(pixels, layout, boxes, flips, size, bands, offset, scale, antialias, out_dtype)
    return out
