# SPDX-License-Identifier: Apache-2.0
"""Where windows lie on an image of any size, and how their results become one.

Neighbours are joined by going from one to the other, `old + weight * (new - old)`, first along a row of windows, then
from row to row. A weighted sum divided by the sum of its weights would change last bits even where all windows agree;
this form gives exactly what they agree on, so a function that looks at single pixels gives the image it would give in
one piece. Nothing here knows models or rasters.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from spectralgpt.errors import UserError

Floats = NDArray[np.float32]


def window_starts(length: int, size: int, overlap: int) -> list[int]:
    """First pixels of windows that cover an axis; the last window ends at the border.

    Args:
        length: pixels of the axis; one shorter than a window gets one window, which the caller pads.
        size: pixels of a window.
        overlap: pixels that neighbours share at least.

    Raises:
        UserError: a window that would not advance.
    """
    if length < 1 or size < 1:
        raise UserError(f"window: expected pixels, got windows of {size} over {length}")
    if not 0 <= overlap < size:
        raise UserError(f"overlap: expected 0 to {size - 1} pixels for windows of {size}, got {overlap}")
    last = max(length - size, 0)
    return [*range(0, last, size - overlap), last]


def mirrored(start: int, count: int, length: int) -> NDArray[np.int64]:
    """Which of `length` pixels stands at each of `count` places from `start` on, mirrored beyond the border."""
    places = np.arange(start, start + count) % (2 * length)
    return np.minimum(places, 2 * length - 1 - places)


@lru_cache(maxsize=64)
def ramp(length: int) -> Floats:
    """Weights of the second of two neighbours over the pixels they share: half a cosine from 0 up to 1."""
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)).astype(np.float32)


class Windows:
    """Square windows over an image, row by row; iterating gives (row, column) of their upper left pixels.

    Attributes:
        shape: rows and columns of the image.
        size: rows and columns that a function sees.
        rows: first image row of each row of windows.
        columns: first image column of each window of a row.
        extent: rows and columns of the image in a window: `size`, or less where the image is smaller.
    """

    def __init__(self, shape: tuple[int, int], size: int, overlap: int) -> None:
        """See `window_starts`."""
        self.shape, self.size = shape, size
        self.rows, self.columns = (window_starts(length, size, overlap) for length in shape)
        self.extent = min(size, shape[0]), min(size, shape[1])

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """In row-major order."""
        return ((row, column) for row in self.rows for column in self.columns)

    def batches(self, batch_size: int) -> list[list[int]]:
        """Columns of the windows of one row, in batches of one length (the last may be shorter) of at most batch_size.

        A batch never spans two rows of windows: what a window is computed together with, on which the last bits of a
        matrix product depend, then follows from its row alone, wherever the work begins and however it is shared.

        Raises:
            UserError: batches of nothing.
        """
        if batch_size < 1:
            raise UserError(f"batch size: expected at least one window, got {batch_size}")
        count = -(-len(self.columns) // batch_size)
        length = -(-len(self.columns) // count)
        return [self.columns[i : i + length] for i in range(0, len(self.columns), length)]

    def finished(self, index: int) -> tuple[int, int]:
        """Image rows, from and to before, that are done once the row of windows `index` is."""
        is_last = index + 1 == len(self.rows)
        return self.rows[index], self.shape[0] if is_last else self.rows[index + 1]

    def first_needed(self, index: int) -> int:
        """The first row of windows that reaches into the row of windows `index`."""
        return next(i for i, row in enumerate(self.rows) if row + self.extent[0] > self.rows[index] or i == index)


class Blend:
    """Joins results of windows, given in order, into rows of the image; keeps two rows of windows in memory."""

    def __init__(self, windows: Windows, first: int = 0) -> None:
        """Begins with the row of windows `first`, as if there were none above it."""
        self._windows, self._index, self._first = windows, first, first
        self._line = self._rows = np.zeros((0, 0, 0), np.float32)  # until the first values tell how many there are
        self._end = 0  # column up to which the current row of windows is filled

    def add(self, column: int, values: Floats | None) -> None:
        """Takes the next window of the row.

        Args:
            column: its first image column.
            values: `(K, size, size)`, of which pixels beyond the image are left out; `(K, 1, 1)` for all pixels; or
                None for a window that nobody looks at, which counts as 0.
        """
        height, width = self._windows.extent
        if values is not None and not self._line.size:
            self._line, self._rows = np.zeros((2, len(values), height, self._windows.shape[1]), np.float32)
        shared, self._end = max(self._end - column, 0), column + width
        if not self._line.size:
            return
        if values is None:
            values = np.zeros((len(self._line), 1, 1), np.float32)
        if values.shape[1:] == (1, 1):
            values = np.broadcast_to(values, (len(values), height, width))
        values = values[:, :height, :width]
        if shared:
            _go(self._line[:, :, column : column + shared], values[:, :, :shared], ramp(shared))
        self._line[:, :, column + shared : column + width] = values[:, :, shared:]

    def finish(self) -> tuple[int, Floats]:
        """Ends a row of windows: the first image row that no later window reaches, and those rows `(K, n, W)`.

        The array is valid until the next call. While every window was None, K is 0.
        """
        if self._end != self._windows.shape[1]:
            raise ValueError(f"expected windows up to column {self._windows.shape[1]}, got them up to {self._end}")
        start, stop = self._windows.finished(self._index)
        shared = 0
        if self._index > self._first:
            shared = self._windows.rows[self._index - 1] + self._windows.extent[0] - start
        if shared > 0 and self._line.size:
            last = self._rows[:, -shared:]
            _go(last, self._line[:, :shared], ramp(shared)[:, None])
            self._line[:, :shared] = last
        self._rows, self._line, self._end = self._line, self._rows, 0
        self._index += 1
        return start, self._rows[:, : stop - start] if self._rows.size else self._empty(stop - start)

    def _empty(self, rows: int) -> Floats:
        return np.zeros((0, rows, self._windows.shape[1]), np.float32)


def _go(old: Floats, new: Floats, weight: Floats) -> None:
    """From `old` towards `new` in place."""
    step = new - old
    step *= weight
    old += step
