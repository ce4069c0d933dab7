# SPDX-License-Identifier: Apache-2.0
"""Curves of a run: what was measured at every step, and at every validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

_COLUMNS = 2
_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f", "#b58900")
_SMOOTHED = 100  # curves of more points are drawn pale, with their running mean over a hundredth of the run


@dataclass(frozen=True)
class Panel:
    """Some curves on common axes.

    Attributes:
        title: what they are.
        curves: (steps, values) by name.
        is_log: whether the axis of values is logarithmic.
    """

    title: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    is_log: bool = False


def curves_figure(panels: Sequence[Panel], stages: Mapping[str, float]) -> Figure:
    """A figure of panels, two in a row.

    Args:
        panels: at least one.
        stages: first step of each stage, by its name; drawn as lines where there are several.
    """
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(11, 2.9 * rows), dpi=100, layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, _COLUMNS, number + 1)
        for (name, (steps, values)), colour in zip(panel.curves.items(), _COLOURS * 9, strict=False):
            if len(values) > _SMOOTHED:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                axes.plot(steps, _running_mean(values), color=colour, linewidth=1.6, label=name)
            else:
                axes.plot(steps, values, "-o", color=colour, markersize=3, linewidth=1.4, label=name)
        if panel.is_log:
            axes.set_yscale("log")
        for step in list(stages.values())[1:]:
            axes.axvline(step, color="#888888", linewidth=0.8, linestyle=":")
        axes.set_title(panel.title, fontsize=10, loc="left", fontweight="bold")
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panel.curves) > 1:
            axes.legend(fontsize=8, frameon=False)
    return figure


def map_figure(values: NDArray[np.uint8], classes: Mapping[int, tuple[str, str]]) -> Figure:
    """A map of classes with the legend of those that occur.

    Args:
        values: class of each pixel, (H, W).
        classes: name and "#rrggbb" by value; pixels of other values are left white.
    """
    picture = np.full((*values.shape, 3), 255, np.uint8)
    for value, (_, colour) in classes.items():
        picture[values == value] = list(bytes.fromhex(colour.lstrip("#")))
    height, width = values.shape
    figure = Figure(figsize=(9, 9 * min(max(height / width, 0.3), 1.5) + 0.8), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    shares = {value: float((values == value).mean()) for value in classes}
    handles = [
        Patch(facecolor=classes[value][1], edgecolor="#888888", label=f"{classes[value][0]} {share:.1%}")
        for value, share in sorted(shares.items(), key=lambda pair: -pair[1])
        if share > 0
    ]
    if handles:
        figure.legend(handles=handles[:20], loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _running_mean(values: Sequence[float]) -> NDArray[np.float64]:
    """The mean over a hundredth of all values around each; what is no number stays out of it."""
    array = np.asarray(values, np.float64)
    width = max(len(array) // _SMOOTHED, 1)
    known = np.isfinite(array)
    kernel = np.ones(2 * width + 1)
    sums = np.convolve(np.where(known, array, 0), kernel, "same")
    counts = np.convolve(known, kernel, "same")
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(len(array), np.nan), where=counts > 0)
    return means
