# SPDX-License-Identifier: Apache-2.0
"""The command: every task, several scenes, and each mistake told in one line with exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning

import spectralgpt
from spectralgpt.cli import main
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.sensors import LANDSAT_OLI_TIRS
from spectralgpt.errors import UserError
from spectralgpt.heads.base import TaskModel
from spectralgpt.predict.command import load_task_model, probabilities_of
from spectralgpt.predict.inputs import InputOptions, card_of, normalize, open_scene
from tests.data.rasters import UTM, at, band_folder, noise, write
from tests.data.test_products import landsat, safe

BANDS = ("B04", "B03", "B02")
SMALL = {"image_size": 16, "bands": SENTINEL2.select(BANDS), "embed_dim": 16, "depth": 1, "num_heads": 2}
KINDS = {
    "segmentation": lambda: spectralgpt.create_segmenter("tiny", 3, classes=("water", "<b>", "town"), **SMALL),
    "single_label": lambda: spectralgpt.create_classifier("tiny", 4, **SMALL),
    "multi_label": lambda: spectralgpt.create_classifier("tiny", 4, task="multi_label", **SMALL),
    "change": lambda: spectralgpt.create_change_detector("tiny", **SMALL),
    "encoder": lambda: spectralgpt.create_model("tiny", **SMALL),
    "autoencoder": lambda: spectralgpt.create_autoencoder(
        "tiny", decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, **SMALL
    ),
}


@pytest.fixture
def folder(tmp_path):
    def make(task, normalization="percentile", **more):
        torch.manual_seed(1)
        model = KINDS[task]()
        model.normalization = {"method": normalization, "band_names": list(BANDS), **more}
        model.save_pretrained(tmp_path / "run" / "model")
        return str(tmp_path / "run")

    return make


@pytest.fixture
def image(tmp_path):
    """Bands in another order than the model's, one more, and a hole."""
    pixels = noise(4, 50, 70)
    pixels[:, 20:30, 20:30] = 0
    return str(write(tmp_path / "scene.tif", pixels, ("B02", "B08", "B03", "B04")))


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return file.read()


def predict(*arguments):
    return main(["predict", *map(str, arguments)])


def refused(capsys, *arguments):
    """The one line that a mistake gives."""
    capsys.readouterr()
    assert predict(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_a_segmenter_maps_a_scene(tmp_path, folder, image, capsys):
    out = tmp_path / "map.tif"
    run = folder("segmentation")
    assert predict(image, "--model", run, "--out", out, "--probabilities", "--batch-size", 3) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 50 x 70 pixels in ")
    shares = read(tmp_path / "map-probabilities.tif")
    with rasterio.open(out) as file:
        classes = file.read(1)
        assert file.crs == UTM["crs"] and file.transform == UTM["transform"] and file.shape == (50, 70)
        assert file.tags()["CLASS_1"] == "<b>" and file.nodata == 255
    hole = np.zeros((50, 70), bool)
    hole[20:30, 20:30] = True
    assert np.array_equal(classes == 255, hole) and (shares[:, hole] == 255).all()
    assert set(np.unique(classes)) <= {0, 1, 2, 255} and len(np.unique(classes)) > 2
    best = np.take_along_axis(shares, np.where(hole, 0, classes)[None], 0)[0]
    assert (best >= shares.max(0)).all() and abs(shares.sum(0, dtype=int)[~hole] - 254).max() <= 2
    assert predict(image, "--model", run, "--out", out, "--probabilities", "--batch-size", 3) == 0
    assert "is there already" in capsys.readouterr().out
    assert "exists, and was made otherwise" in refused(capsys, image, "--model", run, "--out", out, "--overlap", 0)


def test_the_map_is_what_the_model_says(tmp_path, folder, image):
    out = tmp_path / "map.tif"
    run = folder("segmentation")
    predict(image, "--model", run, "--out", out, "--window", 72, "--overlap", 0, "--batch-size", 1)
    model = load_task_model(run)
    scene = open_scene(image, card_of(model, InputOptions()), InputOptions())
    assert scene.band_names == BANDS
    values, valid = scene.read(0, 0, 50, 70)
    values = normalize(scene, model, InputOptions()).apply(values)
    values[~valid] = 0
    padded = torch.from_numpy(np.pad(values, [(0, 0), (0, 22), (0, 2)], mode="symmetric"))
    expected = probabilities_of(model, torch.device("cpu"), torch.float32)(padded[None])[0].argmax(0)[:50, :70]
    assert np.array_equal(read(out)[0][valid.all(0)], expected.numpy()[valid.all(0)])


@pytest.mark.parametrize(("task", "overlap"), [("segmentation", 0.25), ("single_label", 0.5), ("multi_label", 0.5)])
def test_windows_with_one_class_share_half_their_side(tmp_path, folder, image, task, overlap, capsys):
    out, run = tmp_path / "map.tif", folder(task)
    assert predict(image, "--model", run, "--out", out) == 0
    capsys.readouterr()
    assert predict(image, "--model", run, "--out", out, "--overlap", overlap) == 0
    assert "is there already, made by the same settings" in capsys.readouterr().out


def test_class_names_are_where_gis_programs_look(tmp_path, folder, image):
    """GDAL itself reads them back where it is installed; without what our process sets, which leaves sidecars alone."""
    out = tmp_path / "map.tif"
    assert predict(image, "--model", folder("segmentation"), "--out", out) == 0
    names = ElementTree.parse(f"{out}.aux.xml").findall("PAMRasterBand[@band='1']/CategoryNames/Category")
    assert [name.text for name in names] == ["water", "<b>", "town"]
    gdalinfo = shutil.which("gdalinfo")
    if gdalinfo:
        told = json.loads(subprocess.run([gdalinfo, "-json", out], capture_output=True, check=True, env={}).stdout)
        assert told["bands"][0]["categories"] == ["water", "<b>", "town"]
    assert predict(image, "--model", folder("multi_label"), "--out", out, "--overwrite") == 0
    assert not Path(f"{out}.aux.xml").exists(), "names of the map that was there before"


def test_where_the_map_goes(tmp_path, folder, image, capsys):
    run = folder("segmentation")
    assert predict(image, "--model", run, "--out", tmp_path / "maps") == 0
    assert read(tmp_path / "maps" / "scene.tif").shape == (1, 50, 70)
    (tmp_path / "v1.2").mkdir()
    assert predict(image, "--model", run, "--out", tmp_path / "v1.2") == 0
    assert (tmp_path / "v1.2" / "scene.tif").exists()
    message = refused(capsys, image, "--model", run, "--out", tmp_path / "map.png")
    assert "--out: expected a map that ends in .tif, or a folder" in message


@pytest.mark.parametrize("option", ["scene", "mask"])
def test_what_is_read_is_never_written_over(tmp_path, folder, image, capsys, option):
    run = folder("segmentation")
    mask = write(tmp_path / "clouds.tif", np.zeros((1, 50, 70), np.uint8))
    target = {"scene": Path(image), "mask": mask}[option]
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    before = target.read_bytes()
    message = refused(capsys, image, "--model", run, "--mask", mask, "--out", link / target.name, "--overwrite")
    assert "expected an output beside the scene, got a file that is read" in message
    assert target.read_bytes() == before


def test_change_takes_two_dates(tmp_path, folder, image, capsys):
    later = write(tmp_path / "later.tif", noise(4, 50, 70, seed=2), ("B02", "B08", "B03", "B04"))
    run, out = folder("change"), tmp_path / "map.tif"
    assert predict(image, later, "--model", run, "--out", out) == 0
    assert set(np.unique(read(out))) <= {0, 1, 255}
    with rasterio.open(out) as file:
        assert (file.tags()["CLASS_0"], file.tags()["CLASS_1"]) == ("unchanged", "changed")
    assert "two dates for a change detector" in refused(capsys, image, "--model", run, "--out", tmp_path / "o.tif")
    moved = write(
        tmp_path / "moved.tif", noise(4, 50, 70), ("B02", "B08", "B03", "B04"), transform=at(10, left=500_010)
    )
    message = refused(capsys, image, moved, "--model", run, "--out", tmp_path / "o.tif")
    assert "expected the same grid" in message


def test_several_scenes_go_into_a_folder(tmp_path, folder, image, capsys):
    run = folder("single_label")
    other = band_folder(
        tmp_path / "split",
        {b: (10 if b == "B04" else 20, noise(40 // (1 + (b != "B04")), 40 // (1 + (b != "B04")))) for b in BANDS},
    )
    broken = tmp_path / "broken.tif"
    broken.write_bytes(Path(image).read_bytes()[:3000])
    assert predict(image, other, broken, "--model", run, "--out", tmp_path / "maps") == 2
    assert sorted(path.name for path in (tmp_path / "maps").glob("*.tif")) == ["scene.tif", "split.tif"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error: {broken}: ") and lines[1] == "error: 1 of 3 scenes could not be predicted"
    classes = read(tmp_path / "maps" / "split.tif")
    assert classes.shape == (1, 40, 40) and set(np.unique(classes)) <= set(range(4))
    twice = write(tmp_path / "again" / "scene.tif", noise(4, 20, 20), ("B02", "B08", "B03", "B04"))
    assert "expected a folder for 2 scenes" in refused(capsys, image, twice, "--model", run, "--out", tmp_path / "m")
    assert "expected a folder for 2 scenes" in refused(
        capsys, image, other, "--model", run, "--out", tmp_path / "m.tif"
    )


def test_several_labels_give_a_band_each(tmp_path, folder, image):
    out = tmp_path / "map.tif"
    assert predict(image, "--model", folder("multi_label"), "--out", out, "--nodata", 9) == 0
    with rasterio.open(out) as file:
        assert file.count == 4 and file.descriptions[0] == "class_0" and file.nodata == 9
        assert set(np.unique(file.read())) <= {0, 1, 9}


@pytest.mark.parametrize("task", ["encoder", "autoencoder"])
def test_models_without_a_task_are_refused(tmp_path, folder, image, capsys, task):
    message = refused(capsys, image, "--model", folder(task), "--out", tmp_path / "map.tif")
    assert f"expected a classifier, a segmenter or a change detector, got an {task}" in message
    assert not (tmp_path / "map.tif").exists()


def test_missing_bands_and_models(tmp_path, folder, capsys):
    out, run = tmp_path / "map.tif", folder("segmentation")
    lacking = write(tmp_path / "lacking.tif", noise(2, 50, 70), ("B02", "B03"))
    message = refused(capsys, lacking, "--model", run, "--out", out)
    assert "expected band B04, there is B02 B03" in message and "the nearest in place of a missing one" in message
    assert predict(lacking, "--model", run, "--out", out, "--missing", "nearest") == 0
    assert "bands replaced, B04=B03" in capsys.readouterr().err
    nameless = write(tmp_path / "nameless.tif", noise(3, 50, 70))
    assert "band_order" in refused(capsys, nameless, "--model", run, "--out", out)
    assert predict(nameless, "--model", run, "--out", out, "--overwrite", "--band-order", "B02", "B03", "B04") == 0
    assert predict(nameless, "--model", run, "--out", out, "--band-order", "B02,B03,", "B04") == 0
    message = refused(capsys, nameless, "--model", tmp_path, "--out", out)
    assert "expected a run or a model's folder" in message and message.endswith("got neither")
    assert refused(capsys, nameless, "--model", tmp_path / "no", "--out", out).endswith("got no such folder")
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    message = refused(capsys, nameless, "--model", tmp_path / "young", "--out", out)
    assert message.endswith("got one where training has not ended")
    assert "no such file or folder" in refused(capsys, tmp_path / "none.tif", "--model", run, "--out", out)


def test_a_scene_without_coordinates_works_and_says_so(tmp_path, folder, capsys):
    out = tmp_path / "map.tif"
    bare = write(tmp_path / "bare.tif", noise(3, 50, 70), BANDS, crs=None, transform=None)
    assert predict(bare, "--model", folder("segmentation"), "--out", out) == 0
    assert capsys.readouterr().err == "warning: bare.tif: has no coordinate system, and so will its map\n"
    assert read(out).shape == (1, 50, 70)


def test_units(tmp_path, folder, image, capsys):
    """Percentiles do not mind; fixed numbers convert what tags tell and refuse what nothing tells."""
    out = tmp_path / "map.tif"
    numbers = read(image)
    run = folder("segmentation", "fixed", offset=[1000.0] * 3, scale=[1e-3] * 3)
    assert predict(image, "--model", run, "--out", out) == 0
    expected = read(out)
    reflectance = (numbers * np.float32(1e-4)).astype(np.float32)
    names = ("B02", "B08", "B03", "B04")
    silent = write(tmp_path / "silent.tif", reflectance, names, nodata=0)
    message = refused(capsys, silent, "--model", run, "--out", tmp_path / "two.tif")
    assert "expected values in the units of the model's statistics" in message and "--scale 10000" in message
    assert not (tmp_path / "two.tif").exists() and not (tmp_path / "two.tif.work").exists()
    assert predict(silent, "--model", run, "--out", tmp_path / "two.tif", "--scale", 10000) == 0
    assert (read(tmp_path / "two.tif") == expected).mean() > 0.999
    tagged = write(tmp_path / "tagged.tif", numbers.astype(np.int32) * 10, names, nodata=0)
    with rasterio.open(tagged, "r+") as file:
        file.scales, file.offsets = (1e-5,) * 4, (0.0,) * 4
    assert predict(tagged, "--model", run, "--out", tmp_path / "three.tif") == 0
    assert (read(tmp_path / "three.tif") == expected).mean() > 0.999
    raised = write(tmp_path / "raised.tif", np.where(numbers > 0, numbers + 1000, 0).astype(numbers.dtype), names)
    with rasterio.open(raised, "r+") as file:
        file.nodata, file.scales, file.offsets = 0, (1e-4,) * 4, (-0.1,) * 4
    message = refused(capsys, raised, "--model", run, "--out", tmp_path / "raised-map.tif")
    assert "as 1000 stands for reflectance 0 here; give --offset 1000 to subtract it, or --offset 0" in message
    assert predict(raised, "--model", run, "--out", tmp_path / "raised-map.tif", "--offset", 1000) == 0
    assert (read(tmp_path / "raised-map.tif") == expected).mean() > 0.999
    assert predict(raised, "--model", run, "--out", tmp_path / "as-is.tif", "--offset", 0) == 0
    assert (read(tmp_path / "as-is.tif") == expected).mean() < 0.9
    percentile = folder("segmentation")
    assert predict(image, "--model", percentile, "--out", tmp_path / "four.tif") == 0
    assert predict(silent, "--model", percentile, "--out", tmp_path / "five.tif") == 0
    assert (read(tmp_path / "four.tif") == read(tmp_path / "five.tif")).mean() > 0.999
    message = refused(capsys, silent, "--model", percentile, "--out", tmp_path / "six.tif", "--scale", 10000)
    assert "whatever their units" in message


def test_levels_of_landsat_are_never_mixed_up(tmp_path, capsys):
    """Statistics of level 2, level 1 of the same reflectance: refused, and right by what the message says."""
    torch.manual_seed(1)
    model = spectralgpt.create_segmenter("tiny", 3, **{**SMALL, "bands": LANDSAT_OLI_TIRS.select(("B2", "B3", "B4"))})
    statistics = {"band_names": ["B2", "B3", "B4"], "offset": [12000.0] * 3, "scale": [1 / 3000] * 3}
    model.normalization = {"method": "fixed", **statistics}
    run = tmp_path / "run"
    model.save_pretrained(run)
    reflectance = noise(3, 48, 48) / 10000
    top, surface = landsat(tmp_path, "L1TP"), landsat(tmp_path, "L2SP")
    for path, pixels in zip(sorted(top.glob("*_B[234].TIF")), reflectance, strict=True):
        write(path, np.rint(pixels / 4e-5 + 5000).astype(np.uint16)[None], transform=at(30))
    for path, pixels in zip(sorted(surface.glob("*_SR_B[234].TIF")), reflectance, strict=True):
        write(path, np.rint((pixels + 0.2) / 2.75e-5).astype(np.uint16)[None], transform=at(30))
    message = refused(capsys, surface, "--model", run, "--out", tmp_path / "a.tif")
    assert "give --offset 0 if it was L2SP as here" in message
    assert predict(surface, "--model", run, "--out", tmp_path / "a.tif", "--offset", 0) == 0
    message = refused(capsys, top, "--model", run, "--out", tmp_path / "b.tif")
    assert "if it was L1TP as here, else --scale and --offset" in message
    assert message.endswith("reflectance is (value - 5000) * 4e-05 here")
    scale = 4e-5 / 2.75e-5
    units = ("--scale", scale, "--offset", 5000 - 0.2 / 4e-5)
    assert predict(top, "--model", run, "--out", tmp_path / "b.tif", *units) == 0
    assert predict(top, "--model", run, "--out", tmp_path / "wrong.tif", "--offset", 0) == 0
    expected, converted, wrong = (read(tmp_path / f"{name}.tif") for name in ("a", "b", "wrong"))
    assert len(np.unique(expected)) > 1 and (converted == expected).mean() > 0.99 > (wrong == expected).mean()
    model.normalization = {"method": "percentile", **statistics}
    model.save_pretrained(tmp_path / "percentile")
    assert predict(top, "--model", tmp_path / "percentile", "--out", tmp_path / "any.tif") == 0


def test_masks_and_sizes(tmp_path, folder, image, capsys):
    out, run = tmp_path / "map.tif", folder("segmentation")
    clouds = np.zeros((1, 50, 70), np.uint8)
    clouds[0, :10] = 1
    mask = write(tmp_path / "clouds.tif", clouds)
    assert predict(image, "--model", run, "--out", out, "--mask", mask) == 0
    assert (read(out)[0, :10] == 255).all() and (read(out)[0, 10:20] != 255).all()
    tiny = write(tmp_path / "tiny.tif", noise(3, 5, 70), BANDS)
    assert predict(tiny, "--model", run, "--out", tmp_path / "t.tif") == 0
    assert read(tmp_path / "t.tif").shape == (1, 5, 70)
    assert "divisible by the patch's 8, got 20" in refused(
        capsys, image, "--model", run, "--out", tmp_path / "o.tif", "--window", 20
    )
    empty = write(tmp_path / "empty.tif", np.zeros((3, 50, 70), np.uint16), BANDS)
    assert "got only no-data in" in refused(capsys, empty, "--model", run, "--out", tmp_path / "o.tif")
    assert not list(tmp_path.glob("o.tif*"))


def test_a_folder_that_takes_no_files(folder, image, capsys):
    message = refused(capsys, image, "--model", folder("segmentation"), "--out", "/proc/map.tif")
    assert message.startswith("error: /proc/map.tif: cannot be written (")


def test_models_of_other_bands(tmp_path):
    model = spectralgpt.create_segmenter("tiny", 2, image_size=16, bands=3)
    assert isinstance(model, TaskModel)
    with pytest.raises(UserError, match="it knows 3 without; name them with --bands"):
        card_of(model, InputOptions())
    assert card_of(model, InputOptions(bands=("B02", "red", "B08"), sensor="sentinel2")).names == ("B02", "B04", "B08")
    with pytest.raises(UserError, match="bands: expected 3 as the model has, got 1"):
        card_of(model, InputOptions(bands=("B02",)))
    with pytest.raises(UserError, match="name it with --sensor"):
        card_of(model, InputOptions(bands=("x", "y", "z")))


def test_product_folders(tmp_path, folder):
    """A SAFE folder's bands have 10, 20 and 60 m; the map has the finest grid of those that the model needs."""
    out = tmp_path / "map.tif"
    run = folder("segmentation", "none")
    assert predict(safe(tmp_path / "in"), "--model", run, "--out", out, "--offset", 0) == 0
    with rasterio.open(out) as file:
        assert file.shape == (12, 12) and file.transform == at(10)
    small = {**SMALL, "bands": LANDSAT_OLI_TIRS.select(("B2", "B3", "B4"))}
    model = spectralgpt.create_segmenter("tiny", 3, **small)
    model.normalization = {"method": "none", "band_names": ["B2", "B3", "B4"]}
    model.save_pretrained(tmp_path / "run8")
    product = landsat(tmp_path / "in8")
    assert predict(product, "--model", tmp_path / "run8", "--out", tmp_path / "map8.tif", "--offset", 0) == 0
    with rasterio.open(tmp_path / "map8.tif") as file:
        assert file.transform.a == 30
