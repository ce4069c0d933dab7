# SPDX-License-Identifier: Apache-2.0
"""The figure is written for any number of windows and bands, and its parts show what they claim."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from spectralgpt.viz import figures
from spectralgpt.viz.figures import Example, reconstruction_figure

NAMES = ("B02", "B03", "B04", "B8A", "B11", "B12")
WAVELENGTHS = (0.492, 0.560, 0.665, 0.865, 1.610, 2.190)


def example(bands: int = 6, size: int = 16) -> Example:
    rng = np.random.default_rng(0)
    truth = rng.random((bands, size, size), np.float32)
    hidden = np.zeros_like(truth, bool)
    hidden[bands // 2 :, : size // 2] = True
    return Example("scene\nrow 0, column 0", truth, np.where(hidden, 0.5, truth).astype(np.float32), hidden)


def written(monkeypatch: pytest.MonkeyPatch, path: Path, examples: list[Example]) -> Figure:
    kept: list[Figure] = []
    real = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *rest, **options: (kept.append(self), real(self, *rest, **options))
    )
    bands = examples[0].truth.shape[0]
    wavelengths = np.resize(WAVELENGTHS, bands)
    reconstruction_figure(path, examples, np.resize(NAMES, bands).tolist(), wavelengths.tolist(), title="t", unit="u")
    return kept[0]


@pytest.mark.parametrize(("count", "bands"), [(1, 6), (3, 12), (2, 3), (1, 224)])
def test_a_legible_png_for_any_number_of_windows_and_bands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, bands: int
) -> None:
    figure = written(monkeypatch, tmp_path / "f.png", [example(bands)] * count)
    assert len(figure.axes) == 7 * count
    height, width = matplotlib.image.imread(tmp_path / "f.png").shape[:2]
    assert width > 1500
    assert height > 600


def test_hidden_channels_are_grey_and_visible_ones_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """B02, B03, B04 are seen everywhere, the others are hidden in the upper half."""
    figure = written(monkeypatch, tmp_path / "f.png", [example()])
    original, seen, _, _, swir, rebuilt, _ = (
        np.asarray(axes.images[0].get_array()) if axes.images else None for axes in figure.axes
    )
    assert np.array_equal(original, seen)
    assert (swir[:8, :, :2] == 0.5).all(), "B12 and B8A are hidden"
    assert not (swir[:8, :, 2] == 0.5).any(), "B04 is seen"
    assert not (swir[8:] == 0.5).all(axis=-1).any()
    assert rebuilt.shape == (16, 16, 3)


def test_the_spectrum_is_of_a_pixel_that_is_seen_in_part() -> None:
    y, x = figures._telling_pixel(example())
    assert y == 7
    assert x in (7, 8)


def test_constant_pixels_and_nothing_hidden(tmp_path: Path) -> None:
    flat = np.ones((6, 8, 8), np.float32)
    reconstruction_figure(
        tmp_path / "f.png", [Example("e", flat, flat, flat > 2)], NAMES, WAVELENGTHS, title="t", unit="u"
    )
    assert (tmp_path / "f.png").stat().st_size > 10_000
