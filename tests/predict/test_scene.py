# SPDX-License-Identifier: Apache-2.0
"""Scenes on disk: exact, equal to the run in memory, interrupted and continued, refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from spectralgpt.data.mask import Mask
from spectralgpt.data.normalize import Normalization, Normalizer
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError
from spectralgpt.predict.array import predict_array
from spectralgpt.predict.layers import class_layer, label_layer, probability_layer, value_layer
from spectralgpt.predict.scene import predict_scene
from spectralgpt.viz.palette import palette
from tests.data.rasters import UTM, at, noise, write

BANDS = ("B02", "B03", "B04")


def raw(scene):
    return Normalizer("none").of_scene(scene)


def fitted(scene):
    return Normalizer("percentile").of_scene(scene)


@pytest.fixture
def pixels():
    pixels = noise(3, 117, 203)
    pixels[:, :30, :60] = 0  # no data
    pixels[1, 100, 7] = 0  # in one band alone
    return pixels


@pytest.fixture
def scene(tmp_path, pixels):
    return Scene.open(write(tmp_path / "scene.tif", pixels, BANDS), "sentinel2", BANDS)


@pytest.fixture
def model():
    return nn.Conv2d(3, 4, 7, padding=3)


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def in_memory(function, scene, mask=None, **options):
    values, valid = scene.read(0, 0, *scene.shape)
    valid = valid if mask is None else valid & ~mask
    image = fitted(scene).apply(values)
    image[~valid] = 0
    whole = valid.all(axis=0)
    return predict_array(function, torch.from_numpy(image), valid=torch.from_numpy(whole), **options).numpy(), whole


def test_a_per_pixel_function_gives_the_scene(tmp_path, scene, pixels):
    out = tmp_path / "deeper" / "out.tif"
    layers = [value_layer(out, scene, BANDS, "uint16", nodata=0)]
    assert predict_scene(lambda batch: batch, [scene], layers, raw, size=32, batch_size=3)
    expected = pixels * (pixels != 0).all(axis=0)
    assert np.array_equal(read(out), expected)
    with rasterio.open(out) as file:
        assert file.crs == UTM["crs"] and file.transform == UTM["transform"] and file.nodata == 0
        assert file.descriptions == BANDS and file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert [path.name for path in out.parent.iterdir()] == ["out.tif"]


@pytest.mark.parametrize("overlap", [0, 0.3, 0.75])
def test_streamed_equals_in_memory_bit_for_bit(tmp_path, scene, model, overlap):
    out = tmp_path / "out.tif"
    options = {"size": 32, "overlap": overlap, "batch_size": 3}
    predict_scene(model, [scene], [value_layer(out, scene, "abcd", nodata=-1)], fitted, **options)
    expected, valid = in_memory(model, scene, **options)
    assert read(out)[:, valid].tobytes() == expected[:, valid].tobytes()
    assert (read(out)[:, ~valid] == -1).all() and not valid[:30, :60].any() and not valid[100, 7]


@pytest.mark.parametrize("shape", [(20, 203), (117, 9), (5, 6)])
def test_scenes_smaller_than_a_window(tmp_path, model, shape):
    scene = Scene.open(write(tmp_path / "small.tif", noise(3, *shape), BANDS), "sentinel2", BANDS)
    out = tmp_path / "out.tif"
    predict_scene(model, [scene], [value_layer(out, scene, "abcd")], fitted, size=32)
    assert read(out).tobytes() == in_memory(model, scene, size=32)[0].tobytes()


def test_two_dates(tmp_path, scene, pixels):
    other = Scene.open(write(tmp_path / "later.tif", pixels + (pixels > 0), BANDS), "sentinel2", BANDS)
    out = tmp_path / "out.tif"
    layers = [value_layer(out, scene, BANDS, "uint16", nodata=7)]
    predict_scene(lambda before, after: after - before, [scene, other], layers, raw, size=32)
    valid = (pixels != 0).all(axis=0)
    assert (read(out)[:, valid] == 1).all() and (read(out)[:, ~valid] == 7).all()


def test_a_mask_of_another_resolution_is_left_out(tmp_path, scene, model):
    coarse = noise(1, 12, 21, low=0, high=2, dtype=np.uint8)
    coarse[0, -1] = 3  # also where the file calls it "no data"
    mask = write(tmp_path / "clouds.tif", coarse, transform=at(100), nodata=3)
    out = tmp_path / "out.tif"
    predict_scene(
        model, [scene], [value_layer(out, scene, "abcd", nodata=-1)], fitted, size=32, masks=[Mask(mask, scene)]
    )
    masked = coarse[0].repeat(10, 0).repeat(10, 1)[:117, :203] != 0
    expected, valid = in_memory(model, scene, masked, size=32)
    assert np.array_equal(read(out)[:, valid], expected[:, valid])
    assert (read(out)[:, masked] == -1).all()


def test_classes_labels_and_probabilities(tmp_path, scene, model):
    paths = [tmp_path / f"{name}.tif" for name in ("probabilities", "labels", "classes")]
    names = ("water", "forest", "town", "bog")
    layers = [
        probability_layer(paths[0], scene, names),
        label_layer(paths[1], scene, names),
        class_layer(paths[2], scene, names, ("#0000ff", "#00ff00", "#ff0000", "#123456"), nodata=200),
    ]

    def probabilities(batch):
        return model(batch).softmax(1)

    predict_scene(probabilities, [scene], layers, fitted, size=32)
    expected, valid = in_memory(probabilities, scene, size=32)
    assert (
        np.array_equal(read(paths[2])[0, valid], expected.argmax(0)[valid]) and (read(paths[2])[0, ~valid] == 200).all()
    )
    assert np.array_equal(read(paths[1])[:, valid], expected[:, valid] >= 0.5)
    with rasterio.open(paths[0]) as file:
        assert file.descriptions == names and file.nodata == 255
        assert np.abs(file.read()[:, valid] * file.scales[0] - expected[:, valid]).max() <= 0.5 / 254 + 1e-6
    with rasterio.open(paths[2]) as file:
        assert [file.tags()[f"CLASS_{i}"] for i in range(4)] == list(names)
        assert file.colormap(1)[3] == (0x12, 0x34, 0x56, 255) and file.colormap(1)[200] == (0, 0, 0, 0)


def test_one_value_per_window(tmp_path, scene):
    out = tmp_path / "out.tif"

    def classify(batch):
        return batch.mean(dim=(2, 3), keepdim=True).softmax(1)

    predict_scene(classify, [scene], [value_layer(out, scene, BANDS)], fitted, size=32)
    expected, valid = in_memory(classify, scene, size=32)
    assert np.array_equal(read(out)[:, valid], expected[:, valid])


class Stops:
    """A function that fails at one call, as a kill would, and counts."""

    def __init__(self, function, at):
        self.function, self.at, self.calls = function, at, 0

    def __call__(self, batch):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.function(batch)


def test_interrupted_work_goes_on_where_it_was(tmp_path, scene, model):
    whole, parts = tmp_path / "whole.tif", tmp_path / "parts.tif"
    options = {"size": 32, "batch_size": 4, "overlap": 0.6}
    count = Stops(model, 0)
    predict_scene(count, [scene], [value_layer(whole, scene, "abcd")], fitted, **options)
    calls, tries = 0, 0
    while not parts.exists() and tries < 20:
        stops = Stops(model, 7)
        try:
            predict_scene(stops, [scene], [value_layer(parts, scene, "abcd")], fitted, **options)
        except KeyboardInterrupt:
            tries += 1
        calls += stops.calls
    assert tries >= 5 and calls == count.calls + tries  # the batch at hand, and no other, was computed twice
    assert parts.read_bytes() == whole.read_bytes()
    assert not parts.with_name("parts.tif.work").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage"])
def test_a_torn_batch_is_computed_again(tmp_path, scene, model, damage):
    out, options = tmp_path / "out.tif", {"size": 32, "batch_size": 4}
    predict_scene(model, [scene], [value_layer(tmp_path / "whole.tif", scene, "abcd")], fitted, **options)
    with pytest.raises(KeyboardInterrupt):
        predict_scene(Stops(model, 12), [scene], [value_layer(out, scene, "abcd")], fitted, **options)
    log = max((tmp_path / "out.tif.work").glob("batches-*"), key=lambda path: path.stat().st_mtime_ns)
    content = bytearray(log.read_bytes())
    if damage == "flip":
        content[-100] ^= 1
    log.write_bytes(
        content[:-5] if damage == "cut" else content + b"swin" + b"\xff" * 60 if damage == "garbage" else content
    )
    predict_scene(model, [scene], [value_layer(out, scene, "abcd")], fitted, **options)
    assert out.read_bytes() == (tmp_path / "whole.tif").read_bytes()


def interrupted(scene, model, out, **options):
    with pytest.raises(KeyboardInterrupt, match=rf"stays in {re.escape(str(out))}\.work, for the same command"):
        predict_scene(Stops(model, 4), [scene], [value_layer(out, scene, "abcd")], fitted, size=32, **options)
    return out.with_name(f"{out.name}.work")


def test_changed_settings_are_told(tmp_path, scene, model, pixels):
    out = tmp_path / "out.tif"
    work = interrupted(scene, model, out, identity={"model": "a"})
    layers = [value_layer(out, scene, "abcd")]
    with pytest.raises(UserError, match=r"got another model; repeat its command, or give --restart"):
        predict_scene(model, [scene], layers, fitted, size=32, identity={"model": "b"})
    with pytest.raises(UserError, match=r"got another window"):
        predict_scene(model, [scene], layers, fitted, size=16, identity={"model": "a"})
    changed = Scene.open(write(tmp_path / "scene.tif", pixels[::-1], BANDS), "sentinel2", BANDS)
    with pytest.raises(UserError, match=r"got another scene"):
        predict_scene(model, [changed], layers, fitted, size=32, identity={"model": "a"})
    assert work.exists()
    predict_scene(model, [changed], layers, fitted, size=32, restart=True)
    assert np.array_equal(read(out)[:, 60:], in_memory(model, changed, size=32)[0][:, 60:])


def test_what_is_done_is_not_done_again(tmp_path, scene, model):
    out = tmp_path / "out.tif"
    layers = [value_layer(out, scene, "abcd")]
    assert predict_scene(model, [scene], layers, fitted, size=32)
    stamp = out.stat().st_mtime_ns
    assert not predict_scene(Stops(model, 1), [scene], layers, fitted, size=32)
    with pytest.raises(UserError, match="exists, and was made otherwise; choose another --out, or give --overwrite"):
        predict_scene(model, [scene], layers, fitted, size=16)
    assert out.stat().st_mtime_ns == stamp
    assert predict_scene(model, [scene], layers, fitted, size=16, overwrite=True)


def test_two_at_once_are_refused(tmp_path, scene, model):
    out = tmp_path / "out.tif"

    def meanwhile(batch):
        with pytest.raises(UserError, match="another prediction is writing this output"):
            predict_scene(model, [scene], [value_layer(out, scene, "abcd")], fitted, size=32)
        return model(batch)

    predict_scene(meanwhile, [scene], [value_layer(out, scene, "abcd")], fitted, size=32, batch_size=100, overlap=0)
    assert out.exists()


@pytest.mark.parametrize("nodata", ["scene", "mask"])
def test_without_a_valid_pixel_nothing_is_written(tmp_path, scene, pixels, model, nodata):
    out, masks = tmp_path / "out.tif", []
    if nodata == "scene":
        pixels[0] = 0
        scene = Scene.open(write(tmp_path / "empty.tif", pixels, BANDS), "sentinel2", BANDS)
    else:
        masks = [Mask(write(tmp_path / "clouds.tif", np.ones((1, 117, 203), np.uint8)), scene)]

    def fixed(scene):
        return (
            Normalizer("fixed", BANDS, (0.0,) * 3, (1e-3,) * 3).of_scene(scene) if nodata == "mask" else fitted(scene)
        )

    with pytest.raises(UserError, match=r"expected a pixel that is valid|got only no-data in B02"):
        predict_scene(model, [scene], [value_layer(out, scene, "abcd")], fixed, size=32, masks=masks)
    assert not out.exists() and not out.with_name("out.tif.work").exists()


def test_values_that_are_no_numbers_are_refused(tmp_path, scene):
    out = tmp_path / "out.tif"
    with pytest.raises(UserError, match="model: expected numbers, got infinite or undefined ones"):
        predict_scene(lambda batch: batch / 0, [scene], [value_layer(out, scene, BANDS)], fitted, size=32)
    assert not out.exists() and not out.with_name("out.tif.work").exists()


@pytest.mark.parametrize("normalize", ["percentile", "known"])  # a pass over the scene finds it, or the windows do
def test_a_damaged_block_is_named(tmp_path, model, normalize):
    profile = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "interleave": "band"}
    path = write(tmp_path / "scene.tif", noise(3, 200, 200), BANDS, **profile)
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=2))  # column 1 and row 2 of the blocks
    content = bytearray(path.read_bytes())
    content[offset : offset + 50] = bytes(50)
    path.write_bytes(content)
    scene = Scene.open(path, "sentinel2", BANDS)
    known, out = lambda _: Normalization("none", BANDS, (0.0,) * 3, (1.0,) * 3), tmp_path / "out.tif"
    with pytest.raises(
        UserError, match=r"scene\.tif: damaged raster .*; in rows 128 to 191, columns 64 to 127 of band 2$"
    ):
        predict_scene(
            model, [scene], [value_layer(out, scene, "abcd")], known if normalize == "known" else fitted, size=32
        )
    assert not out.exists() and not out.with_name("out.tif.work").exists()


def test_masks_of_elsewhere_are_refused(tmp_path, scene):
    ones = np.ones((1, 117, 203), np.uint8)
    for path, message in (
        (write(tmp_path / "part.tif", ones[:, :50]), "expected a mask of the whole of"),
        (write(tmp_path / "far.tif", ones, transform=at(10, left=600_000)), "expected a mask of the whole of"),
        (write(tmp_path / "zone.tif", ones, crs="EPSG:32633"), "got another coordinate system"),
        (write(tmp_path / "two.tif", ones.repeat(2, 0)), "expected a mask of one band, got 2"),
        (Path(tmp_path / "none.tif"), "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            Mask(path, scene)


def test_palette_and_class_numbers(tmp_path, scene):
    assert len(set(palette(255))) == 255 and palette(3) == palette(255)[:3]
    with pytest.raises(UserError, match="nodata: expected a value from the number of classes, 3, to 255, got 2"):
        class_layer(tmp_path / "out.tif", scene, "abc", nodata=2)


def test_settings_are_plain(tmp_path, scene, model):
    work = interrupted(scene, model, tmp_path / "out.tif")
    settings = json.loads((work / "settings.json").read_text())
    assert settings["bands"] == list(BANDS) and settings["window"] == [32, 8, 16, 1]
