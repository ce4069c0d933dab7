# SPDX-License-Identifier: Apache-2.0
"""The figure of a validation: held-out windows as they are, as seen and as rebuilt, and spectra of single pixels.

Tokens are hidden per band group, so a pixel of a colour composite usually lacks some of its three bands and not
others. "What the model sees" therefore greys out each hidden *channel*: a place where every group is hidden is
grey, one where only red is visible is a shade of red. Reconstructions keep the visible tokens and fill the
hidden ones, in pictures and spectra alike.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import imread, imsave
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

_TRUE_COLOUR = (0.665, 0.560, 0.490)  # um: red, green, blue
_SWIR_FALSE_COLOUR = (2.200, 0.865, 0.665)  # water dark, vegetation green, bare and built-up ground pink
_GREY = 0.5
_LEAST_RANGE = 0.15  # in normalised units: open water is not stretched until its noise shines
_GAMMA = 0.7  # lifts marsh and water beside bright sand
_NOTE = "Tokens are hidden per band group: a hidden channel is grey, so one or two colours of a place may remain."
_TRUTH, _REBUILT, _HIDDEN = "#1b1b1b", "#d1495b", "#e9e9ee"


@dataclass(frozen=True)
class Example:
    """One held-out window.

    Attributes:
        name: where it is, for the caption.
        truth: pixels, (C, H, W).
        rebuilt: the visible tokens of `truth` and the model's prediction elsewhere, (C, H, W).
        hidden: which pixels of which band the model did not see, (C, H, W) bool.
    """

    name: str
    truth: NDArray[np.float32]
    rebuilt: NDArray[np.float32]
    hidden: NDArray[np.bool_]


def read_figure(path: Path) -> NDArray[np.uint8]:
    """The pixels of a figure's PNG file, (H, W, 3)."""
    pixels: NDArray[np.uint8] = (imread(path)[:, :, :3] * 255).round().astype(np.uint8)
    return pixels


def png_bytes(picture: NDArray[np.uint8]) -> bytes:
    """An RGB picture (H, W, 3) as a PNG file, pixel for pixel."""
    file = io.BytesIO()
    imsave(file, picture, format="png")
    return file.getvalue()


def reconstruction_figure(
    path: Path,
    examples: Sequence[Example],
    band_names: Sequence[str],
    wavelengths: Sequence[float],
    *,
    title: str,
    unit: str,
) -> None:
    """Writes the figure as PNG.

    Args:
        path: the file; its folder exists.
        examples: a few windows of one size.
        band_names: of the C bands.
        wavelengths: centres of the C bands in micrometres.
        title: one line above everything.
        unit: what the pixel values are, for the axis of the spectra.
    """
    rows = len(examples)
    figure = Figure(figsize=(12.2, 1.9 * rows + 3.95), dpi=130)
    height = figure.get_figheight()
    figure.text(0.03, 1 - 0.3 / height, title, fontsize=13, fontweight="bold")
    figure.text(0.03, 1 - 0.53 / height, _NOTE, fontsize=9, color="#555555")
    pictures = figure.add_gridspec(
        rows, 7, left=0.03, right=0.985, top=1 - 1.15 / height, bottom=2.8 / height,
        wspace=0.05, hspace=0.05, width_ratios=(1, 1, 1, 0.15, 1, 1, 1),
    )  # fmt: skip
    pixels = [_telling_pixel(example) for example in examples]
    for column, targets, name in ((0, _TRUE_COLOUR, "true colour"), (4, _SWIR_FALSE_COLOUR, "SWIR false colour")):
        bands = [int(np.abs(np.asarray(wavelengths) - target).argmin()) for target in targets]
        label = f"{name}: {', '.join(band_names[band] for band in bands)}"
        _draw_pictures(figure, pictures, column, examples, pixels, bands, label)
    spectra = figure.add_gridspec(1, rows, left=0.065, right=0.985, top=2.3 / height, bottom=0.62 / height, wspace=0.14)
    for index, (example, pixel) in enumerate(zip(examples, pixels, strict=True)):
        axes = figure.add_subplot(spectra[0, index])
        _draw_spectrum(axes, example, pixel, wavelengths, band_names)
        axes.set_title(f"spectrum at {_letter(index)}", fontsize=9.5, fontweight="bold", loc="left")
        if index == 0:
            axes.set_ylabel(unit, fontsize=9)
            legend = axes.legend(
                loc="lower right", bbox_to_anchor=(1, 0.98), ncols=3, fontsize=7.5, borderpad=0,
                handlelength=1.4, columnspacing=0.9, handletextpad=0.4,
            )  # fmt: skip
            legend.set_frame_on(False)
    figure.savefig(path)


def _draw_pictures(
    figure: Figure,
    cells: GridSpec,
    column: int,
    examples: Sequence[Example],
    pixels: Sequence[tuple[int, int]],
    bands: list[int],
    label: str,
) -> None:
    """Three columns of composites; a window's stretch is the 1st to 99th percentile of its true pixels per band."""
    for row, example in enumerate(examples):
        low, high = np.percentile(example.truth[bands].reshape(3, -1), (1, 99), axis=1)
        truth, rebuilt = (
            ((np.moveaxis(cube[bands], 0, -1) - low) / np.maximum(high - low, _LEAST_RANGE)).clip(0, 1) ** _GAMMA
            for cube in (example.truth, example.rebuilt)
        )
        seen = np.where(np.moveaxis(example.hidden[bands], 0, -1), _GREY, truth)
        named = (("original", truth), ("what the model sees", seen), ("rebuilt", rebuilt))
        for offset, (name, picture) in enumerate(named):
            axes = figure.add_subplot(cells[row, column + offset])
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(name, fontsize=9.5)
            if row == 0 and offset == 0:
                axes.annotate(label, (0, 1.2), xycoords="axes fraction", fontsize=10, fontweight="bold")
            if column == 0 and offset == 0:
                axes.set_ylabel(example.name, fontsize=8)
            if offset != 1:
                _mark(axes, pixels[row], _letter(row))


def _mark(axes: Axes, pixel: tuple[int, int], letter: str) -> None:
    y, x = pixel
    axes.plot(x, y, "o", markersize=7, markerfacecolor="none", markeredgecolor="white", markeredgewidth=1.4)
    outline = [withStroke(linewidth=2, foreground="black")]
    axes.annotate(
        letter,
        (x, y),
        (6, 4),
        textcoords="offset points",
        color="white",
        fontsize=9,
        fontweight="bold",
        path_effects=outline,
    )


def _draw_spectrum(
    axes: Axes, example: Example, pixel: tuple[int, int], wavelengths: Sequence[float], band_names: Sequence[str]
) -> None:
    """Truth and reconstruction over wavelength; bands the model did not see stand on grey."""
    order = np.argsort(wavelengths)
    um = np.asarray(wavelengths)[order]
    truth, rebuilt, hidden = (
        cube[:, pixel[0], pixel[1]][order] for cube in (example.truth, example.rebuilt, example.hidden)
    )
    place = np.arange(len(um))  # bands evenly spaced: half of Sentinel-2's lie within 0.2 um
    for band in place[hidden]:
        axes.axvspan(
            band - 0.5, band + 0.5, color=_HIDDEN, linewidth=0, label="hidden" if band == place[hidden][0] else None
        )
    axes.plot(place, truth, "-o", color=_TRUTH, markersize=4, linewidth=1.4, label="original")
    axes.plot(place, rebuilt, "--s", color=_REBUILT, markersize=4, linewidth=1.4, label="rebuilt")
    shown = place[:: max(1, len(place) // 14)]
    axes.set_xticks(shown, [f"{band_names[order[band]]}\n{um[band]:.2f}" for band in shown], fontsize=6.5)
    axes.set_xlim(-0.5, len(place) - 0.5)
    axes.set_xlabel("band, wavelength in \u00b5m", fontsize=8)
    axes.tick_params(axis="y", labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)


def _telling_pixel(example: Example) -> tuple[int, int]:
    """The pixel nearest the middle at which some bands were seen and others hidden."""
    hidden = example.hidden.any(0) & ~example.hidden.all(0)
    y, x = np.nonzero(hidden if hidden.any() else np.ones_like(hidden))
    middle = (np.asarray(hidden.shape) - 1) / 2
    nearest = int(((y - middle[0]) ** 2 + (x - middle[1]) ** 2).argmin())
    return int(y[nearest]), int(x[nearest])


def _letter(index: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index % 26]
