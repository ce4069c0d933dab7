# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import numpy as np
import pytest

from spectralgpt.cli import main
from spectralgpt.data import normalize, statistics
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.normalize import Normalization, Normalizer, Survey, fit
from spectralgpt.data.scene import Scene
from spectralgpt.data.scene_set import DataConfig, SceneSet
from spectralgpt.data.statistics import PERCENTILES, load_mean_std, measure
from spectralgpt.errors import UserError
from tests.data.rasters import noise, write
from tests.data.records import Made


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
    monkeypatch.setattr(normalize, "SAMPLES", 10_000)
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


def reference(record, method):
    """Offset and scale of the whole image, band by band."""
    found = np.zeros((2, *record.pixels.shape[:-2]))
    for band in np.ndindex(found.shape[1:]):
        values = record.pixels[band] if record.valid is None else record.pixels[band][record.valid[band]]
        low, high = np.percentile(values.astype(np.float64), (1, 99) if method == "percentile" else (0, 100))
        found[0][band], found[1][band] = low, 1 / (high - low)
    return found


@pytest.mark.parametrize("method", ["minmax", "percentile"])
@pytest.mark.parametrize("kind", ["none", "change"])
def test_a_record_is_normalised_by_its_own_values(method, kind):
    for index in (0, 1):  # with no-data and without
        record = Made(kind).read(index)
        offset, scale = Normalizer(method).of_record(record)
        assert offset.dtype == scale.dtype == np.float32 and offset.shape == scale.shape == record.pixels.shape[:-2]
        np.testing.assert_allclose((offset, scale), reference(record, method), rtol=1e-6)


def test_minimum_and_maximum_of_the_source_image_count_whatever_was_cut_from_it():
    record = Made("none").read(1)
    offset, scale = Normalizer("minmax").of_record(replace(record, pixels=record.pixels[:, :4, :4]))
    np.testing.assert_allclose((offset, scale), (record.low, 1 / (record.high - record.low)), rtol=1e-6)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_constant_and_empty_bands_of_records_stay_finite(method):
    record = Made("none").read(0)
    pixels, valid, low, high = record.pixels.copy(), record.valid.copy(), record.low.copy(), record.high.copy()
    pixels[2], low[2], high[2] = 70, 70, 70
    valid[5], low[5], high[5] = False, 0, 0
    offset, scale = Normalizer(method).of_record(replace(record, pixels=pixels, valid=valid, low=low, high=high))
    assert (offset[2], scale[2], offset[5], scale[5]) == (70, 1, 0, 1)


def test_fixed_numbers_are_chosen_by_name():
    rule = Normalizer("fixed", ("B02", "B03", "B04"), (1.0, 2.0, 3.0), (0.5, 0.25, 0.125))
    assert rule.select(("B04", "B02")) == Normalizer("fixed", ("B04", "B02"), (3.0, 1.0), (0.125, 0.5))
    offset, scale = rule.select(("B04", "B02")).of_record(Made("change", bands=("B04", "B02")).read(1))
    assert offset.tolist() == [[3, 1]] * 2 and scale.tolist() == [[0.125, 0.5]] * 2
    with pytest.raises(UserError, match="expected statistics of B08 B11, there are those of B02 B03 B04"):
        rule.select(("B08", "B02", "B11"))
    with pytest.raises(UserError, match=r"folder/1\.tif: expected 3 bands as in the statistics, got 12"):
        rule.of_record(Made("none").read(1))
    for wrong in ({"method": "best"}, {"method": "fixed"}, {"method": "fixed", "band_names": ("a",), "offset": (1.0,)}):
        with pytest.raises(UserError, match="normalisation: expected"):
            Normalizer(**wrong)


def test_none_leaves_the_values_alone(tmp_path):
    offset, scale = Normalizer("none").of_record(Made("none").read(0))
    assert not offset.any() and (scale == 1).all()
    found = Normalizer("none").of_scene(scene(tmp_path, noise(2, 9, 9)))
    assert (found.method, found.offset, found.scale) == ("none", (0, 0), (1, 1))


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_scenes_follow_the_same_rule(tmp_path, method):
    image = scene(tmp_path, noise(3, 40, 40))
    assert Normalizer(method).of_scene(image) == fit(image, method)


def test_rules_go_through_json():
    for rule in (Normalizer("minmax"), Normalizer("fixed", ("B02",), (1.5,), (1 / 3,)), Normalizer("none", ("B02",))):
        assert Normalizer.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def all_values(dataset):
    """Valid values of each band of all images together, float64."""
    records = [dataset.read(i) for i in range(len(dataset))]
    values = [[] for _ in dataset.card.names]
    for record in records:
        valid = np.ones(record.pixels.shape, bool) if record.valid is None else record.valid
        for place, some in enumerate(values):
            some.append(record.pixels[..., place, :, :][valid[..., place, :, :]].astype(np.float64))
    return [np.concatenate(some) for some in values]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("kind", ["none", "change"])
def test_statistics_are_numpys(dtype, kind):
    dataset = Made(kind, 9, dtype=dtype)
    found, bad = measure(dataset, "made", num_workers=0)
    values = all_values(dataset)
    assert bad == [] and found.num_images == 9 and found.band_names == dataset.card.names
    for name, function in (("mean", np.mean), ("std", np.std), ("low", np.min), ("high", np.max)):
        np.testing.assert_allclose(getattr(found, name), [function(some) for some in values], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(found.percentiles, [np.percentile(some, PERCENTILES) for some in values], rtol=1e-9)
    sizes = sum(dataset.read(i).pixels[..., 0, :, :].size for i in range(9))
    assert found.valid_share == tuple(some.size / sizes for some in values) and min(found.valid_share) < 1


def test_large_means_cost_no_digits():
    class Warm(Made):
        def read(self, index):
            record = super().read(index)
            return replace(record, pixels=record.pixels / 5000 + 1e6)

    dataset = Warm("none", 5, dtype=np.float64)
    found, _ = measure(dataset, "made", num_workers=0)
    np.testing.assert_allclose(found.std, [some.std() for some in all_values(dataset)], rtol=1e-6)


def test_many_floating_point_values_are_sampled_for_percentiles(monkeypatch):
    monkeypatch.setattr(statistics, "SAMPLES", 5000)
    dataset = Made("none", 60, dtype=np.float32)
    found, _ = measure(dataset, "made", num_workers=0)
    values = all_values(dataset)
    np.testing.assert_allclose(found.mean, [some.mean() for some in values], rtol=1e-6)
    middle = [np.percentile(some, 50) for some in values]
    np.testing.assert_allclose(np.array(found.percentiles)[:, 4], middle, rtol=0.1)


def test_statistics_do_not_depend_on_workers_and_name_bad_images():
    dataset = Made("segmentation", 70, bad=(3,))
    alone, bad = measure(dataset, "made", num_workers=0, max_bad=0.02)
    helped, _ = measure(dataset, "made", num_workers=2, max_bad=0.02)
    assert alone == helped and alone.num_images == 69
    assert bad == [("folder/3.tif", "/made/folder/3.tif: damaged raster (made so)")]
    with pytest.raises(UserError, match=r"at most 1.00% bad images, got 1 of 70: folder/3.tif"):
        measure(dataset, "made", num_workers=0)


def test_statistics_are_a_normalisation(tmp_path, capsys):
    path = tmp_path / "stats.json"
    write(tmp_path / "images/a.tif", noise(3, 32, 64), ("B02", "B03", "B04"))
    options = ["--dataset", "folder", "--split", "all", "--bands", "B02", "B03", "B04", "--workers", "0"]
    assert main(["prepare", "stats", str(tmp_path / "images"), "-o", str(path), *options]) == 0
    assert f"{path}: 1 images" in capsys.readouterr().out
    pixels = noise(3, 32, 64).astype(np.float64)
    rule = Normalizer.from_file(path)
    np.testing.assert_allclose(rule.offset, pixels.mean((1, 2)), rtol=1e-9)
    np.testing.assert_allclose(rule.scale, 1 / pixels.std((1, 2)), rtol=1e-9)
    config = DataConfig(root=str(tmp_path / "images"), bands=("B04", "B02", "B03"), normalization=str(path))
    found = SceneSet(config).normalizations[0]
    assert (found.method, found.offset) == ("fixed", rule.select(config.bands).offset)
    with pytest.raises(UserError, match="expected statistics of B08"):
        DataConfig(normalization=str(path)).normalizer((9, 9)).select(("B08",))
    for text in ("", "{}", '{"band_names": ["a"], "mean": [1], "std": [1], "format": "x", "version": 1}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"stats\.json: expected statistics"):
            load_mean_std(path)
    with pytest.raises(UserError, match=r"nowhere\.json: expected statistics"):
        SceneSet(DataConfig(root=str(tmp_path / "images"), normalization=str(tmp_path / "nowhere.json")))
    with pytest.raises(UserError, match="got 'best'"):
        DataConfig(normalization="best")


def test_bands_without_data_have_no_statistics():
    class Empty(Made):
        def read(self, index):
            record = super().read(index)
            valid = np.ones(record.pixels.shape, bool)
            valid[2] = False
            return replace(record, valid=valid)

    with pytest.raises(UserError, match="got only no-data in B03"):
        measure(Empty("none", 2), "made", num_workers=0)
    with pytest.raises(UserError, match=r"got none; the first: /made/folder/0\.tif: damaged"):
        measure(Made("none", 2, bad=(0, 1)), "made", num_workers=0)
