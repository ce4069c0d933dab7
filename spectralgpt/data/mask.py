# SPDX-License-Identifier: Apache-2.0
"""A raster that says which pixels of a scene to leave out: clouds, water, whatever lies outside a country."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spectralgpt.data.paths import local
from spectralgpt.data.raster import Bools, read_header, read_window
from spectralgpt.data.scene import Scene, axes
from spectralgpt.errors import UserError


class Mask:
    """One band over a whole scene, of the scene's or another resolution; pixels other than 0 are left out.

    A "no data" value of the file means nothing here: what is not 0 is left out.

    Attributes:
        header: of the file.
    """

    def __init__(self, path: str | Path, scene: Scene) -> None:
        """Reads the header.

        Raises:
            UserError: not one band, of another place than the scene, or of a part of it only.
        """
        path = local(path)
        if not path.exists():
            raise UserError(f"{path}: no such file")
        self.header = header = read_header(path)
        if len(header.descriptions) != 1:
            raise UserError(f"{path}: expected a mask of one band, got {len(header.descriptions)}")
        if header.crs != scene.crs or (header.transform is None) != (scene.transform is None):
            raise UserError(f"{path}: expected a mask on the grid of {scene.path}, got another coordinate system")
        self._rows, self._columns = axes(header, scene)
        whole = (self._rows.taps(0, scene.shape[0]), self._columns.taps(0, scene.shape[1]))
        if not all(taps.inside.all() for taps in whole):
            raise UserError(f"{path}: expected a mask of the whole of {scene.path}, got one of a part of it")

    def read(self, row: int, column: int, height: int, width: int) -> Bools:
        """Which pixels of a window of the scene to leave out, `(h, w)`: by the mask's pixel each one's centre is in."""
        rows = self._rows.taps(row, height).nearest
        columns = self._columns.taps(column, width).nearest
        top, left = int(rows.min()), int(columns.min())
        size = int(rows.max()) + 1 - top, int(columns.max()) + 1 - left
        pixels, _ = read_window(self.header, [1], top, left, *size)
        chosen: Bools = np.asarray(pixels[0] != 0)[(rows - top)[:, None], columns - left]
        return chosen
