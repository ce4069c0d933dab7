# SPDX-License-Identifier: Apache-2.0
"""The confusion matrix as a picture: rows are what is true, columns what the model says, colours the share of a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

_NUMBERED = 24  # classes; beyond, numbers in the cells could not be read
_LONGEST = 28


def confusion_figure(matrix: NDArray[np.int64], classes: Sequence[str], unit: str) -> Figure:
    """Draws a confusion matrix.

    Args:
        matrix: counts (N, N), targets by row.
        classes: N names.
        unit: what is counted, such as "images".
    """
    count, totals = len(classes), matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    side, text = min(1.2 + 0.42 * count, 13), 0.08 * min(max(map(len, classes)) + 8, _LONGEST + 8)  # inches
    figure = Figure(figsize=(side + text + 2.2, side + text + 0.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(np.where(totals > 0, shares, np.nan), cmap="Blues", vmin=0, vmax=1)
    names = [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "\u2026" for name in classes]
    names = [name.replace("$", r"\$") for name in names]  # a name is no formula
    size = 9 if count <= 12 else 7 if count <= 32 else 4
    axes.set_xticks(range(count), names, rotation=90, fontsize=size)
    labels = [f"{name} ({total:,})" for name, total in zip(names, totals[:, 0].tolist(), strict=True)]
    axes.set_yticks(range(count), labels, fontsize=size)
    axes.set(xlabel="predicted", ylabel=f"true (number of {unit})")
    if count <= _NUMBERED:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = shares[row, column] > 0.6
            percent = f"{100 * shares[row, column]:.0f}"
            axes.text(column, row, percent, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    figure.colorbar(picture, ax=axes, shrink=0.7, label="share of the true class")
    return figure
