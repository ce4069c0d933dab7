# SPDX-License-Identifier: Apache-2.0
"""A folder in which the documentation's commands run: small things under the very names that the pages use."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

import spectralgpt
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.datasets.oscd import TEST, TRAIN
from spectralgpt.data.splits import eurosat as eurosat_split
from tests.data.datasets import archives
from tests.data.rasters import at, noise, write
from tests.docs.commands import ROOT, shortened

_SIZE = (64, 160)


def scene(path: Path) -> None:
    """A Sentinel-2 scene with named bands in one file."""
    write(path.with_suffix(".tif"), smooth(13, *_SIZE), SENTINEL2.names)
    if path.suffix != ".tif":
        path.with_suffix(".tif").rename(path)


def scenes(path: Path) -> None:
    """A folder of two scenes."""
    for number in range(2):
        write(path / f"scene_{number}.tif", smooth(13, *_SIZE, seed=number), SENTINEL2.names)


def patches(path: Path) -> None:
    """Files without band names, in the order the README's command gives."""
    for number in range(2):
        write(path / f"patch_{number}.tif", smooth(13, *_SIZE, seed=number))


def labelled_folder(path: Path) -> None:
    """Own images with label rasters of two classes beside them."""
    for number in range(4):
        write(path / f"{number}.tif", smooth(13, 32, 32, seed=number), SENTINEL2.names)
        write(path / f"{number}_label.tif", np.indices((1, 32, 32))[1].astype(np.uint8) // 16)


def eurosat(path: Path) -> None:
    """All 27,000 files of EuroSAT, every one of a class the same."""
    for name in eurosat_split():
        first = path / name.split("/")[0] / "first"
        if not first.exists():
            archives.eurosat(path, (0,), (first.parent.name,), size=16)
            (first.parent / f"{first.parent.name}_0.tif").rename(first)
        os.link(first, path / name)
    for first in path.glob("*/first"):
        first.unlink()


def fmow(path: Path) -> None:
    """fMoW-Sentinel, with both splits."""
    for split in ("train", "val"):
        archives.fmow(path, [("airport", 0, n, 2016, 40, 48) for n in range(4)], split=split)


def bigearthnet(path: Path) -> None:
    """BigEarthNet version 2."""
    from tests.data.datasets.test_bigearthnet import version2

    version2(path)


def pretrained(path: Path) -> None:
    """A saved autoencoder of `tiny` with the normalisation of a scene."""
    model = spectralgpt.create_autoencoder("tiny", image_size=32, bands=SENTINEL2.select(SENTINEL2_12))
    model.normalization = {"method": "percentile", "band_names": list(SENTINEL2_12)}
    model.save_pretrained(path)


def published(path: Path) -> None:
    """A checkpoint with the published key names, of the size the README loads it into."""
    import torch

    model = spectralgpt.create_autoencoder("base", image_size=96)
    torch.save({"model": spectralgpt.reference_state_dict(model)}, path)


def oscd(path: Path) -> None:
    """All 24 cities, just large enough for a window of the recipe."""
    for part, cities in (("train", TRAIN), ("test", TEST)):
        for name in cities:
            archives.oscd_city(path / "images", name, ((128, 128), (128, 128)))
            codes = np.ones((128, 128), np.uint8)
            codes[:30, :30] = 2
            archives.label_tif(path / f"{part}_labels" / name / "cm" / f"{name}-cm.tif", codes)


def segmunich(path: Path) -> None:
    """Some images of each part."""
    from tests.data.datasets.test_segmunich import archive

    archive(path, train=tuple("123456"), test=("7", "8"), size=64)


def run_of(path: Path) -> None:
    """A pretraining run."""
    pretrained(path / "model")


def change_model(path: Path) -> None:
    """A saved change detector."""
    model = spectralgpt.create_change_detector("tiny", image_size=32, bands=SENTINEL2.select(SENTINEL2_12))
    model.normalization = {"method": "minmax", "band_names": list(SENTINEL2_12), "offset": None, "scale": None}
    model.save_pretrained(path)


def finetuned(path: Path) -> None:
    """A run that fine-tuned on EuroSAT, with its recipe."""
    from spectralgpt import cli

    world = World(path.parents[1], "", is_new=False)
    words = f"spectralgpt train --config configs/{path.name}.yaml --model.weights RUN".split()
    world.prepared(" ".join([*words, "data/EuroSAT_MS"]))
    assert cli.main(shortened(words)[1:]) == 0


def eurosat_shards(path: Path) -> None:
    """Shards of a hundredth of EuroSAT."""
    from spectralgpt import cli

    source = path.parent / "EuroSAT_MS"
    eurosat(source)
    options = ["--dataset", "eurosat", "--split", "train", "--option", "fraction=0.01", "--workers", "1"]
    assert cli.main(["prepare", "shards", str(source), str(path), *options]) == 0


def places(path: Path) -> None:
    """Own pairs of dates, in OSCD's layout."""
    for name in ("place_a", "place_b", "place_c", "place_d"):
        archives.oscd_city(path, name, ((128, 128), (128, 128)))
        codes = np.ones((128, 128), np.uint8)
        codes[:30, :30] = 2
        archives.label_tif(path / name / "cm" / "cm.tif", codes)


def table(path: Path, labels: tuple[str, ...]) -> None:
    """Own images with a table of labels and splits."""
    lines = ["path,label,split"]
    for number, label in enumerate(labels * 6):
        write(path / f"{number}.tif", smooth(13, 32, 32, seed=number), SENTINEL2.names)
        lines.append(f"{number}.tif,{label},{('train', 'val', 'test')[number // len(labels) % 3]}")
    (path / "labels.csv").write_text("\n".join(lines) + "\n")


def single_labels(path: Path) -> None:
    """One label an image."""
    table(path, ("forest", "water", "town"))


def several_labels(path: Path) -> None:
    """Several labels an image."""
    table(path, ("forest;water", "water", "town;forest"))


def label_rasters(path: Path) -> None:
    """Own images and label rasters in two folders, each image at a place of its own."""
    for number in range(24):
        grid = {"transform": at(10, 500_000 + 1000 * number)}
        write(path / "images" / f"{number}.tif", smooth(4, 32, 32, seed=number), ("B02", "B03", "B04", "B08"), **grid)
        write(path / "labels" / f"{number}.tif", noise(1, 32, 32, low=0, high=4, dtype=np.uint8), **grid)


def recipe(path: Path) -> None:
    """A recipe of one small stage."""
    path.write_text("name: recipe\ndata: {root: SCENE}\nstages: [{image_size: 16, steps: 1, batch_size: 2}]\n")


def pretraining(path: Path) -> None:
    """A run that ended, with its checkpoints."""
    from spectralgpt import cli

    world = World(path.parents[1], "", is_new=False)
    words = [*shortened(["spectralgpt", "train"]), "--name", path.name]
    world.prepared(" ".join(words))
    assert cli.main(words[1:]) == 0


MAKERS: dict[str, Callable[[Path], None]] = {
    "SCENE": scene,
    "scene.tif": scene,
    "/path/to/scenes": scenes,
    "scenes": scenes,
    "S2_PATCHES": patches,
    "FOLDER": labelled_folder,
    "EuroSAT_MS": eurosat,
    "ROOT": eurosat,
    "EuroSAT": eurosat,
    "data/EuroSAT_MS": eurosat,
    "OSCD": oscd,
    "data/OSCD": oscd,
    "data/SegMunich": segmunich,
    "data/fmow-sentinel": fmow,
    "data/bigearthnet": bigearthnet,
    "RECIPE": recipe,
    "RUN": run_of,
    "RUN_OR_FILE": run_of,
    "runs/NAME": run_of,
    "runs/pretrain": run_of,
    "runs/quickstart": run_of,
    "SpectralGPT.pth": published,
}
"""What stands under a name of the pages. A name without a maker must be the output of a command before it."""

OF_PAGE: dict[str, dict[str, Callable[[Path], None]]] = {
    "evaluation.md": {"FOLDER": change_model, "runs/finetune_eurosat": finetuned},
    "training.md": {"runs/NAME": pretraining},
    "shards.md": {"OUT": eurosat_shards},
    "change.md": {"FOLDER": places},
    "classification.md": {"FOLDER": single_labels},
    "multilabel.md": {"FOLDER": several_labels},
    "segmentation.md": {"FOLDER": label_rasters},
}
"""Names that mean something else there, or that stand for an output elsewhere."""


class World:
    """An empty working folder that fills as commands mention things."""

    def __init__(self, folder: Path, page: str, *, is_new: bool = True) -> None:
        """`folder` must be empty; `page` is the name of the page whose words these are."""
        self.folder = folder
        self.makers = {**MAKERS, **OF_PAGE.get(page, {})}
        if not is_new:
            return
        for name in ("configs", "tools", "examples", "benchmarks", "docs", "mkdocs.yml", "spectralgpt"):
            if (ROOT / name).exists():
                (folder / name).symlink_to(ROOT / name)

    def prepared(self, text: str) -> str:
        """Makes what a command or program mentions; the text with absolute paths moved into the folder."""
        for name, make in self.makers.items():
            if not re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w-])", text):
                continue
            path = self.folder / name.lstrip("/")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                make(path)
            text = text.replace(name, str(path)) if name.startswith("/") else text
        return text


def smooth(bands: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Pixels that look a little like land: waves with noise, no value 0."""
    y, x = np.mgrid[:height, :width] / 8
    waves = 2000 + 900 * np.sin(x + seed) * np.cos(y)
    return (waves + 100 * np.arange(bands)[:, None, None] + noise(bands, height, width, high=200)).astype(np.uint16)
