# SPDX-License-Identifier: Apache-2.0
"""Principal components of embeddings, met a few at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spectralgpt.errors import UserError
from spectralgpt.predict.windows import Floats

Doubles = NDArray[np.float64]

_STRETCH = (1.0, 99.0)


class Components:
    """Mean and covariance of vectors of D values, added up in float64."""

    def __init__(self) -> None:
        """Has met none."""
        self._count = 0
        self._sum: Doubles = np.zeros(0)
        self._products: Doubles = np.zeros((0, 0))

    def add(self, vectors: Floats) -> None:
        """Takes in (N, D)."""
        values = vectors.astype(np.float64)
        if not self._count:
            self._sum, self._products = np.zeros(values.shape[1]), np.zeros((values.shape[1],) * 2)
        self._count += len(values)
        self._sum += values.sum(0)
        self._products += values.T @ values

    def axes(self, number: int) -> tuple[Doubles, Doubles]:
        """The mean (D,), and the axes of most variance (number, D); the largest part of each is positive.

        Raises:
            UserError: there are too few vectors.
        """
        if self._count < 2 or len(self._sum) < number:
            raise UserError(f"components: expected at least 2 vectors of {number} values, got {self._count}")
        mean = self._sum / self._count
        _, vectors = np.linalg.eigh(self._products / self._count - np.outer(mean, mean))
        axes = vectors[:, : -number - 1 : -1].T
        largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
        return mean, axes * np.sign(largest)


def as_colours(scores: Floats, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Three components as red, green and blue, each stretched over its 1st to 99th percentile.

    Args:
        scores: (H, W, 3).
        valid: (H, W); other places become black.

    Returns:
        (H, W, 3).
    """
    low, high = np.percentile(scores[valid], _STRETCH, axis=0)
    shown = ((scores - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    shown[~valid] = 0
    colours: NDArray[np.uint8] = (shown * 255).astype(np.uint8)
    return colours
