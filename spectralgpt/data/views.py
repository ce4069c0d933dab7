# SPDX-License-Identifier: Apache-2.0
"""What of an image a model sees: crops, flips and tokens without no-data, as a function of (seed, epoch, sample).

Only the numbers of a view are made here. Pixels stay as the file holds them until `ops.crop_resize` cuts, resizes,
flips and normalises a whole batch on its device. Masks and token validity follow the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spectralgpt import ops
from spectralgpt.data.raster import Bools
from spectralgpt.errors import UserError

Ints = NDArray[np.int64]

CROPS = ("random", "window", "middle", "center", "whole")
_ATTEMPTS = 10
_CENTER = 0.875
_MARGIN = 1e-3


@dataclass(frozen=True)
class ViewConfig:
    """How images become squares.

    Attributes:
        size: rows and columns of the result.
        crop: "random" boxes resized to the square; "window", a square of `size` pixels as they are at a random place,
            and "middle", the one in the middle; "center", the short side resized to size / 0.875 and the centre cut
            out; or "whole", all of the image resized. Images smaller than a window are scaled up to it.
        area: smallest and largest share of the image that a random box covers.
        ratio: smallest and largest width to height of a random box.
        horizontal_flip: flip every second view, left to right.
        vertical_flip: likewise, upside down.
        antialias: bicubic with a kernel as wide as the shrinking asks for; the published models had none.
    """

    size: int = 96
    crop: Literal["random", "window", "middle", "center", "whole"] = "random"
    area: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: bool = True
    vertical_flip: bool = True
    antialias: bool = True

    def __post_init__(self) -> None:
        """Checks what types alone cannot say."""
        for name in ("area", "ratio"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (float(low), float(high)))
            if not 0 < low <= high or (name == "area" and high > 1):
                raise UserError(f"views.{name}: expected two rising numbers above 0, got {low}, {high}")
        if self.size < 1 or self.crop not in CROPS:
            raise UserError(f"views: expected a size and crop {', '.join(CROPS)}, got {self.size}, {self.crop!r}")

    def evaluation(self, crop: Literal["middle", "center", "whole"] = "center") -> ViewConfig:
        """The view without chance."""
        return replace(self, crop=crop, horizontal_flip=False, vertical_flip=False)

    @property
    def resized(self) -> int:
        """Rows and columns a box is resized to; more than `size` where its centre is cut out afterwards."""
        return int(self.size / _CENTER) if self.crop == "center" else self.size

    @property
    def first(self) -> int:
        """First row and column of the result in the resized box."""
        return round((self.resized - self.size) / 2)


class View(NamedTuple):
    """One image's box (first row, first column, rows, columns) and whether it is flipped (vertically, horizontally)."""

    box: tuple[int, int, int, int]
    flips: tuple[bool, bool]


def draw_views(config: ViewConfig, shapes: Ints, keys: Ints, seed: int) -> list[View]:
    """The views of a batch.

    Args:
        config: how.
        shapes: rows and columns of each image, `(B, 2)`.
        keys: epoch and sample id of each, `(B, 2)`.
        seed: of the run.
    """
    if config.crop == "random":
        boxes = _random_boxes(shapes, _words(seed, keys, ops.Purpose.CROP, 2 * _ATTEMPTS + 2), config)
    elif config.crop in ("window", "middle"):
        side = shapes.min(axis=1, keepdims=True).clip(max=config.size)
        origins = (shapes - side) // 2
        if config.crop == "window":
            origins = _words(seed, keys, ops.Purpose.CROP, 2) * (shapes - side + 1) >> 32
        boxes = np.concatenate([origins, side, side], axis=1)
    else:
        boxes = np.concatenate([np.zeros_like(shapes), shapes], axis=1)
        if config.crop == "center":
            side = shapes.min(axis=1, keepdims=True)
            boxes = np.concatenate([(shapes - side) // 2, side, side], axis=1)
    flips = np.zeros((len(keys), 2), bool)
    if config.horizontal_flip or config.vertical_flip:
        flips = _words(seed, keys, ops.Purpose.FLIP, 2) & 1 == 1
        flips &= [config.vertical_flip, config.horizontal_flip]
    return [View(tuple(box), tuple(flip)) for box, flip in zip(boxes.tolist(), flips.tolist(), strict=True)]


def valid_tokens(valid: Bools, view: View, config: ViewConfig, patch_size: tuple[int, int, int]) -> Bools:
    """Tokens that no invalid pixel has entered, in token order: `(..., L)` for pixels `(..., C, H, W)`.

    A resized pixel mixes all pixels its kernel reaches, so a token needs all of those to be valid.
    """
    bands, rows, columns = patch_size
    y, x, height, width = view.box
    top, bottom = _reach(height, view.flips[0], config, rows)
    left, right = _reach(width, view.flips[1], config, columns)
    box = valid[..., y : y + height, x : x + width]
    groups = ~box.reshape(*box.shape[:-3], -1, bands, height, width).all(axis=-3)
    below = np.zeros((*groups.shape[:-2], height + 1, width + 1), np.int32)  # invalid ones above and to the left
    np.cumsum(np.cumsum(groups, axis=-2, dtype=np.int32), axis=-1, out=below[..., 1:, 1:])
    upper, lower = below[..., top, :], below[..., bottom, :]
    count = lower[..., right] - lower[..., left] - upper[..., right] + upper[..., left]
    tokens: Bools = count.reshape(*valid.shape[:-3], -1) == 0
    return tokens


def resize_mask(mask: NDArray[np.uint8], view: View, config: ViewConfig) -> NDArray[np.uint8]:
    """The mask under the same view, `(size, size)`: of each pixel the class at its centre."""
    y, x, height, width = view.box
    rows = y + (_places(view.flips[0], config) + 0.5) * height / config.resized
    columns = x + (_places(view.flips[1], config) + 0.5) * width / config.resized
    resized: NDArray[np.uint8] = mask[rows.astype(np.int64)[:, None], columns.astype(np.int64)]
    return resized


def _words(seed: int, keys: Ints, purpose: ops.Purpose, count: int) -> Ints:
    """Random words of each sample, `(B, count)`; a batch reaches into two epochs at most."""
    words = np.empty((len(keys), count), np.int64)
    for epoch in np.unique(keys[:, 0]).tolist():
        of_epoch = keys[:, 0] == epoch
        words[of_epoch] = ops.philox(seed, torch.from_numpy(keys[of_epoch, 1]), epoch, purpose, count).numpy()
    return words


def _random_boxes(shapes: Ints, words: Ints, config: ViewConfig) -> Ints:
    """Of ten boxes of random area and ratio the first that fits, else the largest central one of a ratio allowed."""
    rows, columns = shapes[:, :1], shapes[:, 1:]
    share, tilt = words[:, 0 : 2 * _ATTEMPTS : 2] / 2**32, words[:, 1 : 2 * _ATTEMPTS : 2] / 2**32
    area = rows * columns * (config.area[0] + share * (config.area[1] - config.area[0]))
    low, high = math.log(config.ratio[0]), math.log(config.ratio[1])
    ratio = np.exp(low + tilt * (high - low))
    width, height = np.rint(np.sqrt(area * ratio)).astype(np.int64), np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width > 0) & (width <= columns) & (height > 0) & (height <= rows)
    first = fits.argmax(axis=1)[:, None]
    size = np.concatenate([np.take_along_axis(height, first, 1), np.take_along_axis(width, first, 1)], axis=1)
    origin = words[:, 2 * _ATTEMPTS :] * (shapes - size + 1) >> 32
    none = ~fits.any(axis=1)
    widest = np.rint(rows * config.ratio[1]).astype(np.int64).clip(1)
    tallest = np.rint(columns / config.ratio[0]).astype(np.int64).clip(1)
    largest = np.concatenate([np.minimum(rows, tallest), np.minimum(columns, widest)], axis=1)
    size[none], origin[none] = largest[none], (shapes - largest)[none] // 2
    return np.concatenate([origin, size], axis=1)


def _places(flip: bool, config: ViewConfig) -> Ints:
    """For each row (or column) of the result its row in the resized box."""
    places = np.arange(config.first, config.first + config.size)
    return config.resized - 1 - places if flip else places


def _reach(length: int, flip: bool, config: ViewConfig, patch: int) -> tuple[Ints, Ints]:
    """First row of the box that reaches each row of tokens, and the first behind it; likewise for columns.

    A margin makes up for a kernel that computes its reach in single precision.
    """
    scale = length / config.resized
    center = (_places(flip, config) + 0.5) * scale
    if config.antialias:
        support = 2 * max(scale, 1.0)
        first, end = np.floor(center - support + 0.5 - _MARGIN), np.floor(center + support + 0.5 + _MARGIN)
    else:
        first, end = np.floor(center - 0.5 - _MARGIN) - 1, np.floor(center - 0.5 + _MARGIN) + 3
    firsts = first.clip(0, length).astype(np.int64).reshape(-1, patch).min(axis=1)
    ends = end.clip(0, length).astype(np.int64).reshape(-1, patch).max(axis=1)
    return firsts, ends
