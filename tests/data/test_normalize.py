# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from spectralgpt.data import normalize
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.normalize import Normalization, Survey, fit
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError
from tests.data.rasters import noise, write


def scene(tmp_path, pixels, **profile):
    path = write(tmp_path / "a.tif", pixels, ["B02", "B03", "B04"][: len(pixels)], **profile)
    return Scene.open(path, SENTINEL2, ("B02", "B03", "B04")[: len(pixels)])


def skewed(*shape):
    return np.random.default_rng(0).gamma(2, 300, shape)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("size", [(7, 9), (600, 70)])  # one strip and two
def test_percentiles_are_numpys_over_the_valid_pixels(tmp_path, dtype, size):
    pixels = np.clip(
        skewed(3, *size) - (0 if np.dtype(dtype).kind == "u" else 500), None, 255 if dtype == np.uint8 else None
    )
    pixels = pixels.astype(dtype)
    pixels[:, :3, :5] = 99
    image = scene(tmp_path, pixels, nodata=99)
    low, high = np.array([np.percentile(band[band != 99].astype(np.float64), (1, 99)) for band in pixels]).T
    found = fit(image, "percentile")
    np.testing.assert_allclose(found.offset, low, rtol=1e-12)
    np.testing.assert_allclose(found.scale, 1 / (high - low), rtol=1e-12)
    low, high = np.array([(band[band != 99].min(), band[band != 99].max()) for band in pixels], np.float64).T
    found = fit(image, "minmax")
    np.testing.assert_allclose((found.offset, found.scale), (low, 1 / (high - low)), rtol=1e-12)


def test_large_floating_point_images_are_sampled_over_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(normalize, "_SAMPLES", 10_000)
    pixels = skewed(1, 1100, 400).astype(np.float32) + np.linspace(0, 4000, 1100, dtype=np.float32)[:, None]
    found = fit(scene(tmp_path, pixels), "percentile")
    low, high = np.percentile(pixels, (1, 99))
    assert abs(found.offset[0] - low) < 0.01 * (high - low)
    assert abs(1 / found.scale[0] - (high - low)) < 0.01 * (high - low)


def test_the_image_is_read_once(tmp_path, monkeypatch):
    image = scene(tmp_path, noise(2, 1200, 30))
    rows = []
    read = Scene.read_raw
    monkeypatch.setattr(Scene, "read_raw", lambda self, row, *window: rows.append(row) or read(self, row, *window))
    survey = Survey(image, "percentile")
    assert rows == [0, 512, 1024] and survey.valid_fraction == 1


def test_values_beyond_the_percentiles_are_kept_and_come_back(tmp_path):
    pixels = skewed(3, 80, 80).astype(np.uint16) + 1
    found = fit(scene(tmp_path, pixels), "percentile")
    normalised = found.apply(pixels)
    assert normalised.dtype == np.float32 and normalised.min() < 0 and normalised.max() > 1
    inside = (normalised >= 0) & (normalised <= 1)
    assert 0.975 < inside.mean() < 0.99
    np.testing.assert_allclose(found.invert(normalised), pixels, atol=1e-3)


def test_a_constant_band_stays_finite(tmp_path):
    found = fit(scene(tmp_path, np.full((1, 9, 9), 700, np.uint16)), "percentile")
    assert (found.offset, found.scale) == ((700.0,), (1.0,))


def test_bands_without_data_are_named(tmp_path):
    pixels = noise(3, 16, 16)
    pixels[1] = 0
    with pytest.raises(UserError, match=r"a\.tif: expected valid pixels in every band, got only no-data in B03"):
        fit(scene(tmp_path, pixels), "minmax")
    with pytest.raises(UserError, match="no-data in B02 B03 B04"):
        fit(scene(tmp_path, np.full((3, 9, 9), np.nan, np.float32)), "percentile")


def test_valid_fraction_counts_values(tmp_path):
    pixels = noise(2, 10, 10)
    pixels[0, :5] = 0
    assert Survey(scene(tmp_path, pixels), "minmax").valid_fraction == 0.75


def test_plain_values_go_through_json():
    found = Normalization("percentile", ("B02", "B03"), (1.5, 2.0), (0.1, 1 / 3))
    assert Normalization.from_dict(json.loads(json.dumps(found.to_dict()))) == found
