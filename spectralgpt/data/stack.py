# SPDX-License-Identifier: Apache-2.0
"""Several dates of one place as `(T, C, H, W)`. Dates must share size, coordinate system and grid: nothing is moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectralgpt.data.bands import SensorCard
from spectralgpt.data.paths import local
from spectralgpt.data.raster import Bools, Pixels
from spectralgpt.data.resample import Floats
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError

_SAME = 1e-3  # of a pixel


class Stack:
    """Scenes of one grid, in the order given.

    Attributes:
        scenes: one per date.
        card: the sensor, cut to the bands shown.
        band_names: canonical names, in the order of the channels.
        shape: rows and columns of each date.
        crs: coordinate system, or None.
        transform: (column, row) to coordinates, an affine.Affine, or None.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        """Checks that the scenes lie on one grid.

        Raises:
            UserError: there is none, or two differ in size, coordinate system, grid or bands; names both.
        """
        if not scenes:
            raise UserError("stack: expected at least one date, got none")
        first = scenes[0]
        for other in scenes[1:]:
            for what, one, two in (
                ("size", first.shape, other.shape),
                ("coordinate system", first.crs, other.crs),
                ("bands", " ".join(first.band_names), " ".join(other.band_names)),
                ("values", first.metadata["values"], other.metadata["values"]),
            ):
                if one != two:
                    raise UserError(f"{first.path}, {other.path}: expected the same {what}, got {one} and {two}")
            if not _is_same_grid(first.transform, other.transform, first.shape):
                raise UserError(
                    f"{first.path}, {other.path}: expected the same grid, got corners and pixels "
                    f"{_corner(first.transform)} and {_corner(other.transform)}"
                )
        self.scenes = tuple(scenes)
        self.card, self.band_names = first.card, first.band_names
        self.shape, self.crs, self.transform = first.shape, first.crs, first.transform

    def read(self, row: int, column: int, height: int, width: int) -> tuple[Floats, Bools]:
        """A window of every date as float32 `(T, C, h, w)`, and the validity of each value; invalid ones are 0."""
        dates = [scene.read(row, column, height, width) for scene in self.scenes]
        return np.stack([pixels for pixels, _ in dates]), np.stack([valid for _, valid in dates])


def open_stack(
    paths: Sequence[str | Path],
    card: SensorCard | str | None = None,
    bands: Sequence[str] | None = None,
    **options: Any,  # noqa: ANN401 - those of Scene.open
) -> Stack:
    """Opens one scene per path; `options` are those of `Scene.open`.

    Raises:
        UserError: a path does not serve, or two do not lie on one grid.
    """
    return Stack([Scene.open(path, card, bands, **options) for path in paths])


def read_array_stack(
    path: str | Path, card: SensorCard, band_order: Sequence[str], bands: Sequence[str] | None = None
) -> Pixels:
    """Bands of a NumPy file `(T, H, W, C)`, as eo-learn writes, as `(T, C, H, W)` in the file's type.

    Such a file knows neither names nor place, so the order of its bands must be told.

    Args:
        path: an .npy file.
        card: the sensor.
        band_order: what the bands are, in the file's order.
        bands: those to give, in this order; by default `band_order`.

    Raises:
        UserError: no such file, or its bands are not as told.
    """
    path = local(path)
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: expected a NumPy file of numbers ({error})") from error
    names = card.select(band_order).names
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 4 or pixels.shape[3] != len(names):
        got = pixels.shape if isinstance(pixels, np.ndarray) else "an archive"
        raise UserError(f"{path}: expected an array (dates, rows, columns, {len(names)} bands), got {got}")
    if pixels.dtype.kind not in "iuf":
        raise UserError(f"{path}: expected integer or floating-point pixels, got {pixels.dtype}")
    wanted = names if bands is None else card.select(bands).names
    absent = [name for name in wanted if name not in names]
    if absent:
        raise UserError(f"{path}: expected band {' '.join(absent)}, there is {' '.join(names)}")
    chosen: Pixels = np.ascontiguousarray(pixels[..., [names.index(name) for name in wanted]].transpose(0, 3, 1, 2))
    return chosen


def _is_same_grid(one: Any, two: Any, shape: tuple[int, int]) -> bool:  # noqa: ANN401 - affine.Affine or None
    """Whether the corners of the image agree."""
    if one is None or two is None:
        return one is two
    height, width = shape
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    apart = (np.reshape(one, (3, 3)) - np.reshape(two, (3, 3))) @ corners
    return bool(np.abs(apart).max() <= _SAME * abs(one.determinant) ** 0.5)


def _corner(transform: Any) -> str:  # noqa: ANN401 - affine.Affine or None
    if transform is None:
        return "none"
    return f"{transform.c:.10g} {transform.f:.10g} at {transform.a:.6g} x {transform.e:.6g}"
