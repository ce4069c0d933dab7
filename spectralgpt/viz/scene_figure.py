# SPDX-License-Identifier: Apache-2.0
"""Pictures of whole scenes: one rebuilt by a model, and one in the colours of its embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

_GREY = 0.5
_LEAST_RANGE = 0.15
_GAMMA = 0.7
_NO_DATA = (0.93, 0.80, 0.93)
_ERROR = "magma"


@dataclass(frozen=True)
class Overview:
    """A thinned scene.

    Attributes:
        truth: red, green and blue in normalised units, (3, H, W).
        rebuilt: the same with hidden values from the model.
        hidden: which values the model did not see, (3, H, W) bool.
        valid: which pixels hold data, (H, W) bool.
        error: of each pixel, (H, W), NaN where nothing was hidden.
        band_names: of red, green and blue.
    """

    truth: NDArray[np.float32]
    rebuilt: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    error: NDArray[np.float32]
    band_names: Sequence[str]


def overview_figure(path: Path, scene: Overview, *, title: str, lines: Sequence[str]) -> None:
    """Writes the scene as it is, as the model sees it, rebuilt, and its errors, beside some lines of text, as PNG."""
    height, width = scene.valid.shape
    panel = 4.2
    tall = panel * min(max(height / width, 0.4), 2.5)
    figure = Figure(figsize=(2 * panel + 5.2, 2 * tall + 1.5), dpi=110)
    figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
    cells = figure.add_gridspec(
        2, 3, width_ratios=(panel, panel, 4.6), left=0.02, right=0.98, top=1 - 0.75 / (2 * tall + 1.5), bottom=0.03,
        wspace=0.08, hspace=0.13,
    )  # fmt: skip
    truth, rebuilt = (_colours(cube, scene) for cube in (scene.truth, scene.rebuilt))
    seen = np.where(np.moveaxis(scene.hidden, 0, -1) & scene.valid[..., None], _GREY, truth)
    bands = ", ".join(scene.band_names)
    panels = ((f"original: {bands}", truth), ("what the model sees", seen), ("rebuilt", rebuilt))
    for number, (name, picture) in enumerate(panels):
        axes = figure.add_subplot(cells[divmod(number, 2)])
        axes.imshow(picture, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=9.5, loc="left")
    axes = figure.add_subplot(cells[1, 1])
    known = scene.error[np.isfinite(scene.error)]
    drawn: Any = axes.imshow(
        scene.error, cmap=_ERROR, vmin=0, vmax=float(np.percentile(known, 99)) if known.size else 1
    )
    axes.set(xticks=[], yticks=[], facecolor=_NO_DATA)
    axes.set_title("error of hidden values, normalised units", fontsize=9.5, loc="left")
    figure.colorbar(drawn, cax=axes.inset_axes((1.02, 0, 0.035, 1)))  # takes no room, so the panels stay aligned
    figure.text(0.69, 1 - 0.9 / (2 * tall + 1.5), "\n".join(lines), family="monospace", fontsize=8.5, va="top")
    figure.savefig(path)


def save_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Writes an RGB or RGBA picture (H, W, 3 or 4) as PNG, pixel for pixel."""
    imsave(path, picture, format="png")


def _colours(cube: NDArray[np.float32], scene: Overview) -> NDArray[np.float64]:
    """(H, W, 3), stretched by the 1st to 99th percentile of the true, valid values."""
    shown = np.moveaxis(cube.astype(np.float64), 0, -1)
    if scene.valid.any():
        low, high = np.percentile(scene.truth[:, scene.valid], (1, 99), axis=1)
        shown = ((shown - low) / np.maximum(high - low, _LEAST_RANGE)).clip(0, 1) ** _GAMMA
    shown[~scene.valid] = _NO_DATA
    return shown
