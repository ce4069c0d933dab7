# SPDX-License-Identifier: Apache-2.0
"""A function of windows on whole images in memory; the same windows, batches and blending as on a scene on disk.

`stacked` and `results` are the two steps that both share, so that both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from spectralgpt.errors import UserError
from spectralgpt.predict.windows import Blend, Floats, Windows, mirrored

Function = Callable[..., Tensor]
"""Normalised windows `(B, C, size, size)`, one batch per date, to values `(B, K, size, size)`, or `(B, K, 1, 1)` for
one value per window."""


def overlap_pixels(size: int, overlap: float) -> int:
    """Pixels that windows of `size` share with each neighbour, for a share of their side.

    Raises:
        UserError: a share beyond 0 to 0.9.
    """
    if not 0 <= overlap <= 0.9:
        raise UserError(f"overlap: expected a share of the window from 0 to 0.9, got {overlap:g}")
    return min(round(overlap * size), size - 1)


def predict_array(
    function: Function,
    *images: Tensor,
    size: int,
    overlap: float = 0.25,
    batch_size: int = 16,
    valid: Tensor | None = None,
) -> Tensor:
    """Applies a function of windows to whole images and blends its results.

    Args:
        function: see `Function`; called without gradients, always with batches of one length.
        *images: `(C, H, W)` float32, normalised, on any device; one, or one per date.
        size: rows and columns of a window. A smaller image is mirrored up to it, and the result cropped back.
        overlap: share of a window's side that it has in common with each neighbour at least.
        batch_size: windows at a time, at most.
        valid: `(H, W)` bool. Windows without a valid pixel are not computed; invalid pixels get 0.

    Returns:
        `(K, H, W)` float32 on the CPU.

    Raises:
        UserError: images of several shapes, or window, overlap and batch that cannot be; and if no pixel is valid.
    """
    planes = [image[0] if image.dim() == 3 else image for image in images] + ([] if valid is None else [valid])
    if any(image.dim() != 3 for image in images) or len({plane.shape for plane in planes}) != 1:
        raise UserError(f"images: expected (C, H, W) of one height and width, got {[tuple(i.shape) for i in images]}")
    windows = Windows((planes[0].shape[0], planes[0].shape[1]), size, overlap_pixels(size, overlap))
    blend, batches = Blend(windows), windows.batches(batch_size)
    height, width = windows.extent
    whole = np.zeros((0, *windows.shape), np.float32)
    for row in windows.rows:
        for columns in batches:
            cuts = [np.s_[row : row + height, column : column + width] for column in columns]
            batch = None
            if valid is None or any(bool(valid[cut].any()) for cut in cuts):
                dates = [[image[(slice(None), *cut)] for cut in cuts] for image in images]
                batch = results(function, [stacked(date, size, len(batches[0])) for date in dates], len(cuts))
            for place, column in enumerate(columns):
                blend.add(column, None if batch is None else batch[place])
        start, values = blend.finish()
        if len(values) > len(whole):
            whole = np.zeros((len(values), *windows.shape), np.float32)
        whole[:, start : start + values.shape[1]] = values
    if not len(whole):
        raise UserError("images: expected a valid pixel, got none")
    if valid is not None:
        whole[:, ~valid.cpu().numpy()] = 0
    return torch.from_numpy(whole)


def stacked(windows: Sequence[Tensor], size: int, length: int) -> Tensor:
    """Windows `(C, h, w)` as one batch `(length, C, size, size)`: mirrored up to `size`, the last repeated up to
    `length`, since matrix products of other shapes may differ in their last bits.
    """  # noqa: D205
    batch = torch.stack([_mirrored(window, size) for window in windows])
    return torch.cat([batch, batch[-1:].expand(length - len(windows), -1, -1, -1)])


@torch.inference_mode()
def results(function: Function, batches: Sequence[Tensor], count: int, cell: int = 1) -> Floats:
    """The function's values for the first `count` windows of each batch, `(count, K, ...)` float32.

    Raises:
        UserError: not such values, or not all of them numbers.
    """
    values = function(*batches)
    length, _, size, _ = batches[0].shape
    side = size // cell
    if values.dim() != 4 or len(values) != length or values.shape[2:] not in {(side, side), (1, 1)}:
        raise UserError(f"function: expected values ({length}, K, {side}, {side}), got {tuple(values.shape)}")
    values = values[:count].float()
    if not values.isfinite().all():
        raise UserError("model: expected numbers, got infinite or undefined ones; check weights and normalisation")
    return values.cpu().numpy()


def _mirrored(window: Tensor, size: int) -> Tensor:
    for axis in (1, 2):
        length = window.shape[axis]
        if length < size:
            window = window.index_select(axis, torch.from_numpy(mirrored(0, size, length)).to(window.device))
    return window
