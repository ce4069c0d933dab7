# SPDX-License-Identifier: Apache-2.0
"""Small labelled archives, models with fresh weights for them, and the command line as a program calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spectralgpt
from spectralgpt import cli
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.heads import TaskModel
from tests.data.datasets.archives import label_tif
from tests.data.rasters import at, write

BANDS = ("B02", "B03", "B04")
TINY: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2, "image_size": 16, "patch_size": (3, 4, 4)}


def coloured(folder: Path, count: int = 12, size: tuple[int, int] = (16, 16), classes: int = 3) -> Path:
    """Images whose class lies in their brightness, with label, several labels and mask of each, and a table."""
    lines, several = ["path,label,split"], ["path,label,split"]
    rng = np.random.default_rng(0)
    for number in range(count):
        label, name = number % classes, f"image_{number:02}.tif"
        pixels = rng.integers(400, 600, (3, *size)) + 1000 * label
        place = {"transform": at(10, left=500_000 + 1000 * number)}
        write(folder / "images" / name, pixels.astype(np.uint16), BANDS, **place)
        mask = np.full(size, label)
        mask[: size[0] // 2] = (label + 1) % classes
        label_tif(folder / "masks" / name, mask)
        split = "train" if number < count // 3 else "test"
        lines.append(f"images/{name},c{label},{split}")
        several.append(f"images/{name},{';'.join(f'c{k}' for k in range(label + 1))},{split}")
    (folder / "single.csv").write_text("\n".join(lines) + "\n")
    (folder / "several.csv").write_text("\n".join(several) + "\n")
    return folder


def saved(model: TaskModel, folder: Path, method: str = "none") -> Path:
    """A model's folder; weights large enough that outputs differ between images."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.normalization = {"method": method, "band_names": list(BANDS), "offset": None, "scale": None}
    if method == "fixed":
        model.normalization |= {"offset": [1000.0] * 3, "scale": [0.001] * 3}
    model.eval().save_pretrained(folder)
    return folder


def classifier(folder: Path, task: str = "single_label", classes: tuple[str, ...] = ("c0", "c1", "c2")) -> Path:
    model = spectralgpt.create_classifier(
        "tiny", len(classes), task=task, classes=classes, bands=SENTINEL2.select(BANDS), **TINY
    )
    return saved(model, folder, "fixed")


def evaluate(*arguments: str) -> dict[str, Any]:
    """The results of a command that must succeed; its last option is --out FOLDER."""
    assert cli.main(["evaluate", "--bootstrap", "60", *arguments]) == 0
    results: dict[str, Any] = json.loads((Path(arguments[-1]) / "results.json").read_text())
    return results
