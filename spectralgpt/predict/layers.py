# SPDX-License-Identifier: Apache-2.0
"""The rasters that can be made of blended values: classes, labels, probabilities, or the values themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import mul
from pathlib import Path

import numpy as np

from spectralgpt.data.raster import Bools, Pixels
from spectralgpt.data.raster_write import RasterLayout
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError
from spectralgpt.predict.windows import Floats
from spectralgpt.viz.palette import palette

NODATA = 255
_STEPS = 254  # of a probability in a byte, 255 being "no data"


@dataclass(frozen=True)
class Layer:
    """One raster.

    Attributes:
        path: where it appears.
        layout: what it is.
        encode: blended values `(K, n, W)` to pixels `(bands, n, W)`.
    """

    path: Path
    layout: RasterLayout
    encode: Callable[[Floats], Pixels]

    def pixels(self, values: Floats, valid: Bools) -> Pixels:
        """Some rows, with "no data" where a pixel is not valid."""
        nodata = 0 if self.layout.nodata is None else self.layout.nodata
        if not valid.any():
            return np.full((len(self.layout.bands), *valid.shape), nodata, self.layout.dtype)
        pixels = self.encode(values).astype(self.layout.dtype, copy=False)
        pixels[:, ~valid] = nodata
        return pixels


def class_layer(
    path: Path, scene: Scene, classes: Sequence[str], colours: Sequence[str] = (), nodata: int = 255
) -> Layer:
    """The most probable class of each pixel, with the classes' names and a colour table.

    Raises:
        UserError: "no data" is a class's number, or there are more classes than a byte holds.
    """
    if not len(classes) <= nodata <= 255:
        raise UserError(f"nodata: expected a value from the number of classes, {len(classes)}, to 255, got {nodata}")
    layout = _layout(
        scene,
        "uint8",
        ("class",),
        nodata=nodata,
        colours=tuple(colours) or palette(len(classes)),
        classes=tuple(classes),
        is_categorical=True,
    )
    return Layer(path, layout, lambda values: values.argmax(axis=0)[None])


def label_layer(path: Path, scene: Scene, classes: Sequence[str], nodata: int = NODATA) -> Layer:
    """A band for each label, 1 where its probability is at least one half."""
    layout = _layout(scene, "uint8", tuple(classes), nodata=nodata, is_categorical=True)
    return Layer(path, layout, lambda values: values >= np.float32(0.5))


def probability_layer(path: Path, scene: Scene, classes: Sequence[str]) -> Layer:
    """A band for each class, one byte for a probability: pixel / 254, as the scale says; 255 is "no data"."""
    layout = _layout(scene, "uint8", tuple(classes), nodata=NODATA, scale=1 / _STEPS)
    return Layer(path, layout, lambda values: np.rint(values.clip(0, 1) * np.float32(_STEPS)))


def value_layer(
    path: Path,
    scene: Scene,
    bands: Sequence[str],
    dtype: str = "float32",
    nodata: float | None = None,
    cell: int = 1,
) -> Layer:
    """The values as they are, each for `cell` rows and columns of pixels; integers are rounded to."""
    layout = _layout(scene, dtype, tuple(bands), nodata=nodata)
    if cell > 1:
        height, width = (-(-length // cell) for length in scene.shape)
        steps = (cell, cell, 1, cell, cell, 1)
        transform = scene.transform and type(scene.transform)(*map(mul, tuple(scene.transform)[:6], steps))
        layout = replace(layout, shape=(height, width), transform=transform)
    return Layer(path, layout, np.rint if np.dtype(dtype).kind in "iu" else np.copy)


def _layout(scene: Scene, dtype: str, bands: tuple[str, ...], **more: object) -> RasterLayout:
    return RasterLayout(scene.shape, dtype, bands, scene.crs, scene.transform, **more)  # type: ignore[arg-type]
