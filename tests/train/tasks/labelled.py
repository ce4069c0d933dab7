# SPDX-License-Identifier: Apache-2.0
"""Small labelled archives in the public layouts, with classes that a tiny model can tell apart by their texture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spectralgpt.data.bands import SENTINEL2_12
from spectralgpt.data.splits import eurosat as eurosat_split
from tests.data.datasets import archives
from tests.data.rasters import noise, write

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def stripes(image: np.ndarray, upright: bool) -> np.ndarray:
    """Bright and dark stripes of two pixels, along the rows or the columns."""
    pattern = np.arange(image.shape[-1]) // 2 % 2 * 200
    return image + (pattern if upright else pattern[: image.shape[-2], None]).astype(image.dtype)


def eurosat(root: Path, count: int = 8, held_out: int = 4, classes: tuple[str, ...] = ("Forest", "River")) -> Path:
    """`count` training and `held_out` validation images of each class."""
    split, wanted = eurosat_split(), {"train": count, "val": held_out}
    for number, name in enumerate(classes):
        for part, most in wanted.items():
            paths = [path for path, side in split.items() if side == part and path.startswith(f"{name}/")]
            for seed, path in enumerate(paths[:most]):
                image = archives.cube(archives.EUROSAT_ORDER, 16, 16, seed=seed)
                write(root / path, stripes(image, number == 0))
    return root


def bigearthnet(root: Path, count: int = 4) -> Path:
    """Version 1 with lists: upright stripes are water, all images forest."""
    for part in ("train", "val"):
        names = [f"S2A_MSIL2A_20170613T101031_{number}_{7 if part == 'train' else 8}" for number in range(count)]
        for number, name in enumerate(names):
            labels = ["Mixed forest"] + (["Water bodies"] if number % 2 else [])
            archives.bigearthnet_patch(root / "BigEarthNet-v1.0" / name, labels, seed=number)
        (root / f"{part}.csv").write_text("\n".join(names) + "\n")
    return root


def fields(root: Path, count: int = 6, size: int = 32, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """A folder with a table: the left part of each image is striped and labelled 1, a corner has no label."""
    lines = ["path,mask,split"]
    for split in splits:
        for number in range(count if split == "train" else 2):
            image = noise(12, size, size, seed=number, low=1000, high=1040)
            left = size // 4 + 4 * (number % 3)
            image[:, :, :left] = stripes(image, True)[:, :, :left]
            mask = np.zeros((size, size), np.uint8)
            mask[:, :left] = 1
            mask[:3, :3] = 9
            write(root / f"{split}_{number}.tif", image, SENTINEL2_12)
            write(root / f"{split}_{number}_mask.tif", mask[None])
            lines.append(f"{split}_{number}.tif,{split}_{number}_mask.tif,{split}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return root


FIELDS = ["table=table.csv", "classes=[background, striped]", "codes=[0, 1]", "ignore=[9]"]


def cities(root: Path, names: tuple[str, ...] = ("paris", "rennes"), changed: int = 16) -> Path:
    """Pairs of 32 x 48 pixels; a striped block of the second date is the change."""
    for name in names:
        shape = (32, 48)
        archives.oscd_city(root / "images", name, shapes=(shape, shape))
        mask = np.zeros(shape, np.uint8)
        mask[8 : 8 + changed, 8 : 8 + changed] = 1
        for band in archives.FMOW_ORDER if changed else ():
            path = root / "images" / name / "imgs_2_rect" / f"{band}.tif"
            pixels = archives.cube([band], *shape, seed=3) + np.uint16(1000)
            pixels[0][mask == 1] = stripes(pixels[0], True)[mask == 1]
            write(path, pixels, crs=None, transform=None)
        archives.label_tif(root / "train_labels" / name / "cm" / f"{name}-cm.tif", mask + 1)
    return root


CITIES = ["cities={train: [paris], val: [rennes]}", "window=16"]


def recipe(folder: Path, task: str, root: Path, dataset: str, options: list[str], **changes: Any) -> Path:
    """A recipe of a few steps over images of 16 pixels, in plain float32."""
    stage = {"image_size": 16, "steps": 12, "batch_size": 4, "warmup_steps": 2, "lr": 3e-3, **changes.pop("stage", {})}
    tree = {
        "task": task,
        "name": "run",
        "output": str(folder / "runs"),
        "seed": 5,
        "threads": 1,
        "device": "cpu",
        "model": dict(TINY),
        "data": {"root": str(root), "dataset": dataset, "options": options, **changes.pop("data", {})},
        "stages": [stage],
        "log_every": 1,
        "validate_every": 4,
        "checkpoint_every": 3,
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path
