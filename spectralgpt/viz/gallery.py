# SPDX-License-Identifier: Apache-2.0
"""Pictures of data: one sample with its label, and a contact sheet of many.

Colours are true as far as the bands allow: red, green and blue are the bands nearest to these by wavelength, and the
sheet names them. All three share one range of values, from each one's 2nd percentile on and never narrow, so that open
water is not stretched until its noise shines; the dates of a pair share theirs too, so that only the ground differs.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from spectralgpt.viz.palette import palette

__all__ = ["Figure", "Picture", "colour_bands", "contact_sheet", "sample_figure"]

_TRUE_COLOUR = (0.665, 0.560, 0.490)  # um: red, green, blue
_UNLABELLED = "#d8d8e2"
_NO_DATA = (0.93, 0.80, 0.93)
_GAMMA = 0.8
_LEAST_CONTRAST = 0.25  # of the mean value
_LEGEND = 20
_PANEL, _GAP, _CAPTION, _TITLE, _LEGEND_SPACE, _LEAST_WIDTH = 1.5, 0.12, 0.36, 0.55, 0.6, 6.5  # inches


@dataclass(frozen=True)
class Picture:
    """What is drawn of a sample.

    Attributes:
        image: red, green and blue (3, H, W), or (T, 3, H, W) for several dates.
        band_names: of these three.
        caption: below it.
        mask: class of each pixel (H, W), or None.
        valid: where pixels hold data, as `image`, or None where all do.
    """

    image: NDArray[Any]
    band_names: Sequence[str]
    caption: str
    mask: NDArray[Any] | None = None
    valid: NDArray[np.bool_] | None = None


def colour_bands(wavelengths: Sequence[float]) -> list[int]:
    """The bands nearest to red, green and blue by their centres in micrometres."""
    return [int(np.abs(np.asarray(wavelengths) - target).argmin()) for target in _TRUE_COLOUR]


def sample_figure(
    picture: Picture,
    classes: Sequence[str],
    colours: Sequence[str] = (),
    show_titles: bool = True,
    suptitle: str | None = None,
) -> Figure:
    """A figure of one sample: each date, then the mask.

    Args:
        picture: the sample.
        classes: names of the mask's classes.
        colours: of these, as "#rrggbb"; a palette of 20 by default.
        show_titles: whether to name the panels.
        suptitle: above all.
    """
    panels = _panels(picture, classes, colours)
    titles = [*(_dates(picture) or [_bands_text(picture)]), "labels"]
    figure = Figure(figsize=(3.2 * len(panels), 3.9), dpi=110, layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.imshow(panel, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        if show_titles:
            axes.set_title(titles[number], fontsize=9)
        if number == 0 and picture.caption:
            axes.set_xlabel(textwrap.fill(picture.caption, 48), fontsize=8)
    if picture.mask is not None:
        _legend(figure, [picture], classes, colours)
    if suptitle:
        figure.suptitle(suptitle, fontsize=10)
    return figure


def contact_sheet(
    path: Path, pictures: Sequence[Picture], classes: Sequence[str], colours: Sequence[str] = (), *, title: str
) -> None:
    """Writes many samples as one PNG; dates and mask of a sample stand side by side.

    Args:
        path: the file; its folder exists.
        pictures: at least one.
        classes: names of the masks' classes.
        colours: of these; a palette of 20 by default.
        title: above all; the bands shown as colours are added.
    """
    cells = [_panels(picture, classes, colours) for picture in pictures]
    panels = max(map(len, cells))
    across = max(1, min(len(cells), round(math.sqrt(1.6 * len(cells) / panels))))
    down = math.ceil(len(cells) / across)
    has_masks = any(picture.mask is not None for picture in pictures)
    wide, high = panels * _PANEL + _GAP, _PANEL + _CAPTION
    width, height = max(_LEAST_WIDTH, across * wide + _GAP), down * high + _TITLE + (_LEGEND_SPACE if has_masks else 0)
    figure = Figure(figsize=(width, height), dpi=110)
    figure.text(_GAP / width, 1 - 0.22 / height, title, fontsize=11, fontweight="bold")
    figure.text(_GAP / width, 1 - 0.42 / height, _bands_text(pictures[0]), fontsize=8.5, color="#555555")
    for number, (picture, images) in enumerate(zip(pictures, cells, strict=True)):
        row, column = divmod(number, across)
        left, bottom = _GAP + column * wide, height - _TITLE - row * high - _PANEL
        for place, image in enumerate(images):
            box = ((left + place * _PANEL) / width, bottom / height, (_PANEL - 0.04) / width, _PANEL / height)
            axes = figure.add_axes(box)
            axes.imshow(image, interpolation="nearest")
            axes.set(xticks=[], yticks=[], anchor="NW")
            axes.spines[:].set_visible(False)
        caption = textwrap.wrap(picture.caption, 27 * panels, max_lines=2, placeholder=" \u2026")
        figure.text(left / width, (bottom - 0.03) / height, "\n".join(caption), fontsize=6.5, va="top")
    if has_masks:
        _legend(figure, pictures, classes, colours)
    figure.savefig(path)


def _panels(picture: Picture, classes: Sequence[str], colours: Sequence[str]) -> list[NDArray[np.float64]]:
    """RGB (H, W, 3) of each date, then of the mask."""
    image = picture.image[None] if picture.image.ndim == 3 else picture.image
    shown = np.moveaxis(image.astype(np.float64), 1, -1)
    valid = np.ones(shown.shape[:3], bool)
    if picture.valid is not None:
        valid = np.asarray(picture.valid.reshape(image.shape).all(axis=1))
    if valid.any():
        low, high = np.percentile(shown[valid], (2, 98), axis=0)
        least = _LEAST_CONTRAST * np.abs(shown[valid].mean(axis=0)).max()
        shown = ((shown - low) / max(float((high - low).max()), float(least), 1e-9)).clip(0, 1) ** _GAMMA
    shown[~valid] = _NO_DATA
    panels = list(shown)
    if picture.mask is not None:
        table = np.array([to_rgb(colour) for colour in _palette(len(classes), colours)])
        known = np.minimum(picture.mask.astype(np.int64), len(classes))
        panels.append(np.vstack([table, to_rgb(_UNLABELLED)])[known])
    return panels


def _bands_text(picture: Picture) -> str:
    names = picture.band_names
    return "red, green, blue: " + ", ".join(names) if len(set(names)) > 1 else f"grey: {names[0]}"


def _dates(picture: Picture) -> list[str]:
    return [f"date {number + 1}" for number in range(len(picture.image))] if picture.image.ndim == 4 else []


def _palette(count: int, colours: Sequence[str]) -> list[str]:
    return list(colours) if colours else list(palette(count))


def _legend(figure: Figure, pictures: Sequence[Picture], classes: Sequence[str], colours: Sequence[str]) -> None:
    """The classes that occur; all others, and pixels without a label, where there are such."""
    seen = sorted({int(value) for picture in pictures if picture.mask is not None for value in np.unique(picture.mask)})
    table = _palette(len(classes), colours)
    entries = [(textwrap.shorten(classes[value], 32), table[value]) for value in seen if value < len(classes)][:_LEGEND]
    if any(value >= len(classes) for value in seen):
        entries.append(("no label", _UNLABELLED))
    handles = [Patch(facecolor=colour, edgecolor="#888888", linewidth=0.5, label=name) for name, colour in entries]
    figure.legend(
        handles=handles,
        loc="outside lower center" if figure.get_layout_engine() else "lower center",
        ncols=min(5, len(handles)),
        fontsize=7,
        frameon=False,
    )
