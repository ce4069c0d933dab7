# SPDX-License-Identifier: Apache-2.0
"""Windows of scenes on disk as normalised batches; a few hundred rows of each scene are in memory at a time.

Rows are read in chunks that begin where blocks of the usual sizes begin, so that each block is unpacked once. What a
model sees of an invalid or masked value is 0 after normalisation, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spectralgpt.data.mask import Mask
from spectralgpt.data.normalize import Normalization
from spectralgpt.data.raster import Bools, Pixels
from spectralgpt.data.scene import Scene
from spectralgpt.predict.windows import Windows, mirrored

_CHUNK_BYTES = 384 << 20
_CHUNK_ROWS = (512, 256, 128, 64)
_PANEL = 2048  # columns read at once, which bounds what GDAL and NumPy hold besides


class Source:
    """Windows of one scene, or of one per date.

    Attributes:
        scenes: of one grid.
        windows: over them, counted in cells.
        cell: rows and columns of pixels that get one value.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        normalizations: Sequence[Normalization],
        windows: Windows,
        masks: Sequence[Mask] = (),
        cell: int = 1,
    ) -> None:
        """Reads nothing yet; there is one normalisation for each scene."""
        self.scenes, self.windows, self.cell = tuple(scenes), windows, cell
        self._size = windows.size * cell
        self._rows = [_Rows(scene, masks, self._size) for scene in scenes]
        self._affine = [normalization.arrays() for normalization in normalizations]
        height, width = (mirrored(0, self._size, length * cell) for length in windows.extent)
        self._places = (..., height[:, None], width)

    def batch(self, row: int, columns: Sequence[int], length: int) -> list[Tensor] | None:
        """Windows of one row as float32 `(length, C, size, size)`, one tensor per date; None if no cell is valid.

        Row and columns count cells. The last window is repeated up to `length`, smaller images are mirrored up to
        `size`.

        Raises:
            UserError: a file is damaged.
        """
        height, width = self.windows.extent
        if not any(self.valid(row, row + height)[:, column : column + width].any() for column in columns):
            return None
        batches = []
        for rows, (offset, scale) in zip(self._rows, self._affine, strict=True):
            pixels, valid = rows.at(row * self.cell, (row + height) * self.cell)
            batch = np.empty((length, len(pixels), self._size, self._size), np.float32)
            for place, column in enumerate(columns):
                inside = np.s_[:, :, column * self.cell : (column + width) * self.cell]
                window = np.subtract(pixels[inside], offset, dtype=np.float32)
                window *= scale
                if valid is not None:
                    window[~valid[inside]] = 0
                batch[place] = window if window.shape[1:] == batch.shape[2:] else window[self._places]
            batch[len(columns) :] = batch[len(columns) - 1]
            batches.append(torch.from_numpy(batch))
        return batches

    def valid(self, start: int, stop: int) -> Bools:
        """Cells `(n, W)` of these rows all of whose values, of every date, are valid and not masked."""
        whole = [rows.whole(start * self.cell, stop * self.cell) for rows in self._rows]
        pixels: Bools = whole[0] if len(whole) == 1 else np.logical_and.reduce(whole)
        if self.cell == 1:
            return pixels
        cells: Bools = np.logical_and.reduce(pixels.reshape(stop - start, self.cell, -1, self.cell), axis=(1, 3))
        return cells


class _Rows:
    """Some rows of one scene, moving down it."""

    def __init__(self, scene: Scene, masks: Sequence[Mask], reach: int) -> None:
        height, width = scene.shape
        row_bytes = len(scene.band_names) * width * (scene.dtype.itemsize + 1)
        self._chunk = next((rows for rows in _CHUNK_ROWS if rows * row_bytes <= _CHUNK_BYTES), _CHUNK_ROWS[-1])
        capacity = min(self._chunk + reach, height)
        self._scene, self._masks = scene, masks
        self._pixels = np.empty((len(scene.band_names), capacity, width), scene.dtype)
        self._valid: Bools | None = None  # of each value, once there is an invalid one
        self._whole = np.empty((capacity, width), bool)
        self._start = self._stop = 0

    def at(self, start: int, stop: int) -> tuple[Pixels, Bools | None]:
        """Pixels `(C, n, W)` of these rows and their validity, None for all valid; rows before `start` are let go."""
        self._move(start, stop)
        rows = slice(start - self._start, stop - self._start)
        if self._valid is None or self._whole[rows].all():
            return self._pixels[:, rows], None
        return self._pixels[:, rows], self._valid[:, rows]

    def whole(self, start: int, stop: int) -> Bools:
        """Which pixels `(n, W)` of these rows are valid in all bands; rows before `start` are let go."""
        self._move(start, stop)
        return self._whole[start - self._start : stop - self._start]

    def _move(self, start: int, stop: int) -> None:
        if stop <= self._stop and start >= self._start:
            return
        kept = self._stop - start if self._start <= start < self._stop else 0
        first = start - self._start
        for buffer in (self._pixels, self._valid, self._whole[None]):
            if buffer is not None and kept:
                buffer[:, :kept] = buffer[:, first : first + kept]
        self._start, self._stop = start, start + kept
        while self._stop < stop:
            end = min((self._stop // self._chunk + 1) * self._chunk, self._scene.shape[0])
            for left in range(0, self._scene.shape[1], _PANEL):
                self._read(end - self._stop, left, min(_PANEL, self._scene.shape[1] - left))
            self._stop = end

    def _read(self, height: int, left: int, width: int) -> None:
        row = self._stop
        place = np.s_[..., row - self._start : row - self._start + height, left : left + width]
        pixels, valid = self._scene.read_raw(row, left, height, width)
        self._pixels[place] = pixels
        masked = [mask.read(row, left, height, width) for mask in self._masks]
        if valid is None and not any(mask.any() for mask in masked):
            self._whole[place] = True
            if self._valid is not None:
                self._valid[place] = True
            return
        if self._valid is None:
            self._valid = np.ones(self._pixels.shape, bool)
        self._valid[place] = True if valid is None else valid
        for mask in masked:
            self._valid[place] &= ~mask
        self._whole[place] = self._valid[place].all(axis=0)
