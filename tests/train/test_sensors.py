# SPDX-License-Identifier: Apache-2.0
"""Sensors whose band count no token divides, and data sets: from files to a trained model by one recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

import spectralgpt
from spectralgpt.data.convert import convert
from spectralgpt.data.datasets import open_dataset
from spectralgpt.train.command import run_training
from tests.data.datasets import archives
from tests.data.rasters import write
from tests.train.small_run import write_recipe


def scene(path: Path, count: int, names: list[str] | None, tags: bool = False) -> Path:
    """Fields of 8 x 8 pixels, each with a spectrum of its own; bands are named or carry wavelengths."""
    random = np.random.default_rng(0)
    fields = np.cumsum(random.normal(0, 30, (count, 6, 10)), axis=0) + 1500
    pixels = np.kron(fields, np.ones((8, 8))) + random.normal(0, 5, (count, 48, 80))
    write(path, pixels.astype(np.int16), names)
    if tags:
        with rasterio.open(path, "r+") as file:
            for number in file.indexes:
                file.update_tags(number, wavelength=418 + 9 * number, fwhm=8, wavelength_units="Nanometers")
    return path


HLS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B09", "B10", "B11"]


@pytest.mark.parametrize(
    ("sensor", "count", "names", "bands", "channels"),
    [
        ("gaofen2_pms", 4, ["blue", "green", "red", "nir"], ["B1", "B2", "B3", "B4"], 6),
        ("hls_l30", 10, HLS, HLS, 12),
        ("enmap", 224, None, [], 225),
    ],
)
def test_a_recipe_trains_on_any_sensor(
    tmp_path: Path, sensor: str, count: int, names: list[str] | None, bands: list[str], channels: int
) -> None:
    image = scene(tmp_path / "scene.tif", count, names, tags=names is None)
    stage = {"name": "only", "image_size": 16, "steps": 4, "batch_size": 2, "warmup_steps": 1, "mask_ratio": 0.75}
    data = {"root": str(image), "sensor": sensor, "bands": bands}
    recipe = write_recipe(tmp_path, image, stages=[stage], data=data, validate_every=4, checkpoint_every=4)
    assert run_training({"config": str(recipe)}) == 0
    model = spectralgpt.from_pretrained(tmp_path / "runs/run/model")
    assert model.config.bands == count and sum(map(len, model.config.groups)) == channels
    assert len(model.config.wavelengths) == count and len(set(model.config.band_names)) == count


def test_a_recipe_trains_on_a_data_set_and_on_its_shards_alike(tmp_path: Path) -> None:
    archives.eurosat(tmp_path / "archive", numbers=range(1, 9))
    convert(open_dataset("eurosat", tmp_path / "archive", "all", partial=True), "eurosat", tmp_path / "shards")
    stage = {"name": "only", "image_size": 16, "steps": 4, "batch_size": 3, "warmup_steps": 1, "mask_ratio": 0.75}
    splits = {"train_split": "all", "val_split": "all"}
    weights = []
    for name, data in (
        ("files", {"dataset": "eurosat", "root": str(tmp_path / "archive"), "options": ["partial=true"]}),
        ("shards", {"dataset": "shards", "root": str(tmp_path / "shards")}),
    ):
        recipe = write_recipe(tmp_path, tmp_path, stages=[stage], data={**data, **splits}, name=name)
        assert run_training({"config": str(recipe)}) == 0
        weights.append((tmp_path / f"runs/{name}/model/model.safetensors").read_bytes())
        assert spectralgpt.from_pretrained(tmp_path / f"runs/{name}/model").normalization["method"] == "minmax"
    assert weights[0] == weights[1]
