# SPDX-License-Identifier: Apache-2.0
"""A STAC item where a scene is taken: the same map as the same bands in one file give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

import spectralgpt
from spectralgpt.cli import main
from spectralgpt.data.bands import SENTINEL2
from tests.data.rasters import noise, write

NAMES = ("B02", "B03", "B04")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, a scene in one file, and the same scene as an item with one asset per band."""
    monkeypatch.chdir(tmp_path)
    small = {"image_size": 16, "bands": SENTINEL2.select(NAMES), "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = spectralgpt.create_segmenter("tiny", 3, **small)
    model.normalization = {"method": "percentile", "band_names": list(NAMES), "offset": None, "scale": None}
    model.save_pretrained(tmp_path / "model")
    pixels = noise(3, 40, 50)
    write(tmp_path / "scene.tif", pixels, NAMES)
    assets = {}
    for name, key, plane in zip(NAMES, ("blue", "green", "red"), pixels, strict=True):
        write(tmp_path / "item" / f"{key}.tif", plane[None])
        assets[key] = {"href": f"./{key}.tif", "eo:bands": [{"name": name, "common_name": key}]}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "S2A_L2A", "collection": "sentinel-2-l2a"}
    (tmp_path / "item" / "item.json").write_text(json.dumps({**item, "properties": {}, "assets": assets}))
    return tmp_path


def read(path: Path) -> tuple[np.ndarray, object, object]:
    """Pixels and place."""
    with rasterio.open(path) as file:
        return file.read(), file.crs, file.transform


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_an_item_gives_what_the_file_gives(here: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for scene, out in (("scene.tif", "a.tif"), ("item/item.json", "b.tif")):
        assert main([command, scene, "--model", "model", "--out", out]) == 0, capsys.readouterr().err
    (one, *place), (two, *other_place) = read(here / "a.tif"), read(here / "b.tif")
    np.testing.assert_array_equal(one, two)
    assert place == other_place


def test_a_remote_asset_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "item" / "item.json"
    path.write_text(path.read_text().replace("./red.tif", "https://example.com/red.tif"))
    assert main(["predict", "item/item.json", "--model", "model", "--out", "c.tif"]) == 2
    error = capsys.readouterr().err
    assert "download B04, which the item only links to" in error and error.count("\n") == 1
    assert not (here / "c.tif").exists()
