# SPDX-License-Identifier: Apache-2.0
"""What the random calls are made of: values, memory layouts, grids, token ids, and flaws in them.

Hypothesis draws the structure; a generator seeded by it draws the values, which keeps an example small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.trials import Trial

Draw = Callable[[st.SearchStrategy[Any]], Any]
Flaws = dict[str, Callable[[], dict[str, Any]]]
PATCHES = [1, 2, 3, 4, 5, 7, 8, 16]
LAYOUTS = ["contiguous", "contiguous", "offset", "reversed", "channels_last", "padded", "stepped", "expanded"]


def values(draw: Draw, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values; for integers the dtype's whole range."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return noise_bits(draw, *shape, dtype=dtype)


def noise_bits(draw: Draw, *shape: int, dtype: torch.dtype) -> Tensor:
    """Every bit pattern the dtype has, all kinds of NaN included."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def restride(draw: Draw, tensor: Tensor, expand: tuple[int, ...] = (0,)) -> Tensor:
    """The same values in another memory layout; "expanded" repeats the first entry of a dimension of `expand`."""
    layout = draw(st.sampled_from(LAYOUTS))
    dims = list(range(tensor.dim()))
    if layout == "offset":  # one element past an aligned address
        return torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])[1:].view(tensor.shape)
    if layout in ("reversed", "channels_last"):
        order = dims[::-1] if layout == "reversed" else [*dims[:1], *dims[2:], *dims[1:2]]
        inverse = sorted(dims, key=lambda dim: order[dim])
        return tensor.permute(order).contiguous().permute(inverse)
    if layout in ("padded", "stepped"):  # a window of a poisoned buffer
        step = 2 if layout == "stepped" else 1
        buffer = poison(tuple(step * size + 3 for size in tensor.shape), tensor.dtype)
        window = buffer[tuple(slice(1, 1 + step * size, step) for size in tensor.shape)]
        return window.copy_(tensor)
    if layout == "expanded" and expand and all(tensor.shape):
        dim = draw(st.sampled_from(expand))
        return tensor.narrow(dim, 0, 1).expand_as(tensor)
    return tensor.contiguous()


def poison(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A buffer whose values no result may show: NaN, or the largest number."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.full(shape, float("nan"), dtype=dtype)
    return torch.full(shape, True if dtype == torch.bool else torch.iinfo(dtype).max, dtype=dtype)


def spoil(draw: Draw, trial: Trial, flaws: Flaws) -> Trial:
    """One call in five gets one flaw."""
    if draw(st.integers(0, 4)) == 4:
        flaw = draw(st.sampled_from(sorted(flaws)))
        return Trial(trial.op, {**trial.arguments, **flaws[flaw]()}, flaw)
    return trial


def grid(draw: Draw) -> tuple[tuple[int, int, int], tuple[int, int, int], int]:
    """(C, H, W), patch and L; hyperspectral now and then, at most some ten thousand values."""
    patch = tuple(draw(st.sampled_from(PATCHES)) for _ in range(3))
    counts = [draw(st.integers(1, 4)) for _ in range(3)]
    if patch[1] * patch[2] <= 25 and draw(st.integers(0, 9)) == 9:
        counts[0] = 75
    while patch[0] * patch[1] * patch[2] * counts[0] * counts[1] * counts[2] > 20_000:
        counts[counts.index(max(counts))] = 1
        if counts == [1, 1, 1]:
            break
    size = tuple(number * by for number, by in zip(counts, patch, strict=True))
    return size, patch, counts[0] * counts[1] * counts[2]  # type: ignore[return-value]


def grid_flaws(size: tuple[int, int, int], patch: tuple[int, int, int]) -> Flaws:
    """Patches that no image of `size` can have."""
    return {
        "bands not divisible": lambda: {"patch_size": (_no_divisor(size[0]), *patch[1:])},
        "height not divisible": lambda: {"patch_size": (patch[0], _no_divisor(size[1]), patch[2])},
        "width not divisible": lambda: {"patch_size": (*patch[:2], _no_divisor(size[2]))},
        "patch larger than the image": lambda: {"patch_size": (*patch[:2], 2 * size[2])},
        "patch of 0": lambda: {"patch_size": (patch[0], 0, patch[2])},
        "negative patch": lambda: {"patch_size": (*patch[:2], -patch[2])},
        "patch of two sizes": lambda: {"patch_size": patch[:2]},
        "patch of four sizes": lambda: {"patch_size": (*patch, 1)},
    }


def batch(draw: Draw) -> int:
    return draw(st.integers(0, 3))


def token_ids(draw: Draw, rows: int, length: int) -> Tensor:
    """Ids of tokens, some more than once."""
    keep = draw(st.integers(0, min(length + 2, 40)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return restride(draw, torch.randint(length, (rows, keep), generator=generator), (0, 1) if keep else ())


def ids_flaws(ids: Tensor, length: int) -> Flaws:
    far = ids.new_full((max(1, len(ids)), 1), length)
    return {
        "32-bit ids": lambda: {"ids_keep": ids.int()},
        "a row too many": lambda: {"ids_keep": torch.cat([ids, far[:1].expand(1, ids.shape[1])])},
        "flat ids": lambda: {"ids_keep": ids.flatten()},
        "ids elsewhere": lambda: {"ids_keep": ids.to("meta")},
    } | (
        {
            "id past the grid": lambda: {"ids_keep": torch.cat([ids, far], 1)},
            "negative id": lambda: {"ids_keep": torch.cat([ids, -far], 1)},
            "id past 32 bits": lambda: {"ids_keep": torch.cat([ids, far + 2**32], 1)},
        }
        if len(ids)
        else {}
    )


def places(draw: Draw, rows: int, length: int, keep: int) -> Tensor:
    """ids_restore: each of 0 .. K-1 once per row; what is hidden may stand anywhere behind."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    restore = torch.rand(rows, length, generator=generator).argsort(1)
    if draw(st.integers(0, 4)) == 4:
        restore = restore.where(restore < keep, draw(st.sampled_from([keep, 2**31, 2**40])))
    return restride(draw, restore)


def places_flaws(restore: Tensor, keep: int) -> Flaws:
    def swapped(old: int, new: int) -> Callable[[], dict[str, Any]]:
        return lambda: {"ids_restore": restore.where(restore != old, new)}

    flaws: Flaws = {
        "32-bit places": lambda: {"ids_restore": restore.int()},
        "a row too many": lambda: {"ids_restore": restore.new_zeros(len(restore) + 1, restore.shape[1])},
        "flat places": lambda: {"ids_restore": restore.flatten()},
    }
    if len(restore) and keep:
        flaws["missing place"] = swapped(keep - 1, keep)
        flaws["negative place"] = swapped(0, -1)
        flaws["shorter than visible"] = lambda: {"ids_restore": restore[:, : keep - 1]}
    if len(restore) and 0 < keep < restore.shape[1]:
        flaws["place held twice"] = lambda: {
            "ids_restore": restore.where(restore != restore.max(1, True).values, keep - 1)
        }
    return flaws


def _no_divisor(size: int) -> int:
    return next(number for number in range(2, size + 2) if size % number)
