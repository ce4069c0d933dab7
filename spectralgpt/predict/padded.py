# SPDX-License-Identifier: Apache-2.0
"""A scene whose sides are whole multiples of a length: mirrored beyond its lower and right border."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectralgpt.data.raster import Bools, Pixels
from spectralgpt.data.scene import Scene
from spectralgpt.predict.windows import mirrored


class PaddedScene:
    """Stands for a `Scene` wherever windows of it are read.

    Attributes:
        inner: the scene itself.
        shape: rows and columns, rounded up.
    """

    def __init__(self, inner: Scene, multiple: int) -> None:
        """Rounds both sides up to the next multiple."""
        self.inner = inner
        height, width = (-(-length // multiple) * multiple for length in inner.shape)
        self.shape = height, width

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the scene has
        """Everything else is the scene's."""
        return getattr(self.inner, name)

    def read_raw(self, row: int, column: int, height: int, width: int) -> tuple[Pixels, Bools | None]:
        """As `Scene.read_raw`."""
        rows = mirrored(row, height, self.inner.shape[0])
        columns = mirrored(column, width, self.inner.shape[1])
        top, left = int(rows.min()), int(columns.min())
        pixels, valid = self.inner.read_raw(top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left)
        if row + height <= self.inner.shape[0] and column + width <= self.inner.shape[1]:
            return pixels, valid
        places = np.s_[:, (rows - top)[:, None], columns - left]
        return pixels[places], None if valid is None else valid[places]
