# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.raster import read_header
from spectralgpt.data.scene import Scene
from spectralgpt.data.synthetic import synthetic_scene


def pixels(path, *bands):
    scene = Scene.open(path, SENTINEL2, bands or None)
    values, valid = scene.read(0, 0, *scene.shape)
    assert valid.all()
    return values


def test_a_scene_is_a_function_of_size_and_seed(tmp_path):
    first, again, other = (
        pixels(synthetic_scene(tmp_path / f"{i}.tif", 70, 90, seed=seed)) for i, seed in enumerate((3, 3, 4))
    )
    assert first.shape == (13, 70, 90)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9


def test_the_file_is_a_real_product(tmp_path):
    header = read_header(synthetic_scene(tmp_path / "a.tif", 64, 64))
    assert header.descriptions == SENTINEL2.names and header.dtype == np.uint16
    assert header.crs.to_epsg() == 32632 and header.transform.a == 10


def test_land_has_water_and_plants_and_detail_at_every_scale(tmp_path):
    red, nir, swir = pixels(synthetic_scene(tmp_path / "a.tif", 300, 300), "B04", "B08", "B11")
    vegetation = (nir - red) / (nir + red)
    assert (vegetation > 0.5).mean() > 0.1
    assert (swir < 400).mean() > 0.03
    coarse = nir.reshape(30, 10, 30, 10).mean(axis=(1, 3))
    assert 0.2 < coarse.std() / nir.std() < 0.98


@pytest.mark.parametrize(("band", "factor"), [("B05", 2), ("B01", 6)])
def test_coarse_bands_can_be_blurred(tmp_path, band, factor):
    """Halving the resolution takes the fine detail out, and leaves the averages."""
    sharp = pixels(synthetic_scene(tmp_path / "a.tif", 120, 120, blur=False), band)[0]
    soft = pixels(synthetic_scene(tmp_path / "b.tif", 120, 120, blur=True), band)[0]
    assert np.abs(np.diff(soft)).mean() < 0.8 * np.abs(np.diff(sharp)).mean()
    assert abs(soft.mean() - sharp.mean()) < 5
