# SPDX-License-Identifier: Apache-2.0
"""Shapes, dtypes and option sets shared by all tests of the ops."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """An image shape and a patch."""

    shape: tuple[int, int, int, int]
    patch: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        _, bands, height, width = self.shape
        t, p, q = self.patch
        return (bands // t) * (height // p) * (width // q)

    @property
    def values(self) -> int:
        return self.patch[0] * self.patch[1] * self.patch[2]


CASES = [
    Case((2, 12, 24, 40), (3, 8, 8)),  # the model's patch, not square
    Case((3, 4, 6, 10), (2, 3, 5)),  # odd patch: no wide loads
    Case((1, 6, 32, 16), (3, 16, 16)),
    Case((2, 10, 8, 12), (5, 4, 4)),
    Case((1, 3, 11, 22), (1, 11, 11)),
    Case((2, 225, 4, 4), (3, 2, 2)),  # hyperspectral: 75 groups
    Case((1, 2, 1, 3), (1, 1, 1)),
]
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ANY = [*FLOATS, torch.uint8, torch.uint16, torch.int16, torch.int64, torch.bool, torch.complex128]


def image_of(case: Case, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random values the dtype can hold."""
    values = torch.rand(case.shape, dtype=torch.float64) * 100
    return values.to(dtype)


def strided(image: Tensor, how: str) -> Tensor:
    """The same values under other strides."""
    if how == "channels_last":
        return image.to(memory_format=torch.channels_last)
    if how == "crop":  # a window of a larger buffer, at an address no wide load may use
        padded = torch.zeros(*image.shape[:2], image.shape[2] + 3, image.shape[3] + 5, dtype=image.dtype)
        padded[:, :, 2:-1, 1:-4] = image
        return padded[:, :, 2:-1, 1:-4]
    if how == "transposed":
        return image.transpose(2, 3).contiguous().transpose(2, 3)
    if how == "band_slice":
        return torch.stack([image, image], 2).flatten(1, 2)[:, ::2]
    if how == "expanded":
        return image[:1].expand_as(image)
    return image


STRIDES = ["contiguous", "channels_last", "crop", "transposed", "band_slice", "expanded"]


def check_op(op: torch._ops.OpOverload, *arguments: object) -> None:
    """torch.library.opcheck: schema, fake kernel, autograd registration, tracing."""
    torch.library.opcheck(op, arguments)
