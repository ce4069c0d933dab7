# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import pytest

from spectralgpt.cli import main
from spectralgpt.data.report import parse_options
from spectralgpt.errors import UserError
from tests.data.datasets import archives
from tests.data.datasets.test_segmunich import archive as segmunich
from tests.data.rasters import write


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The sheet goes to the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def info(capsys, *arguments, code=0):
    assert main(["info", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    return out.splitlines() if code == 0 else err


def test_without_a_folder_it_shows_versions(capsys):
    assert info(capsys)[0].startswith("spectralgpt ")
    assert os.listdir() == []


def test_a_recognised_archive(tmp_path, capsys):
    archives.eurosat(tmp_path / "data", numbers=range(1, 13))
    lines = info(capsys, tmp_path / "data")
    assert lines[0] == f"EuroSAT in {tmp_path / 'data'}, one class each"
    assert lines[1] == "bands: B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12"
    assert [line.split(":")[0] for line in lines[2:5]] == ["train", "val", "test"]
    assert "found" in lines[2] and "of 16200 listed images" in lines[2]
    counts = next(line for line in lines if line.startswith("Forest ")).split()[1:]
    assert sum(map(int, counts)) == 12
    assert "read 24 images: 16 x 16 pixels, uint16, 0 % no data" in lines
    assert "coordinate systems: EPSG:32632 24" in lines and "problems: none" in lines
    sheet = tmp_path / "here" / "eurosat-train-val-test.png"
    assert lines[-1] == f"contact sheet: {sheet}" and sheet.read_bytes()[:4] == b"\x89PNG"


def test_problems_are_told_once_for_each_kind(tmp_path, capsys):
    archives.eurosat(tmp_path / "data", numbers=range(1, 7))
    folder = tmp_path / "data" / "AnnualCrop"
    for number in (1, 2):
        write(folder / f"AnnualCrop_{number}.tif", np.ones((3, 4, 4), np.uint8))
    write(folder / "AnnualCrop_3.tif", np.zeros((13, 16, 16), np.uint16))
    lines = info(capsys, tmp_path / "data", "--split", "all", "--sheet", tmp_path / "s.png")
    told = [line for line in lines if line.startswith("problem")]
    assert len(told) == 3 and told[-1] == "problems: 3"
    assert told[0].startswith("problem, 2 images: ") and "AnnualCrop_1.tif: expected 13 bands" in told[0]
    assert "AnnualCrop_3.tif: expected an image with data" in told[1]
    assert lines[-1] == f"contact sheet: {tmp_path / 's.png'}" and (tmp_path / "s.png").exists()


def test_masks_give_shares_of_pixels(tmp_path, capsys):
    lines = info(capsys, segmunich(tmp_path / "data"), "--split", "train", "--bands", "B02,B03", "B04")
    assert lines[0].startswith("SegMunich in ") and lines[1] == "bands: B02 B03 B04"
    shares = [line for line in lines if "% of the pixels" in line]
    assert len(shares) == 13 and shares[1].endswith("% of the pixels: Arable land")
    assert sum(float(line.split()[0]) for line in shares) == pytest.approx(100, abs=0.02)


def test_changes_and_splits_that_do_not_open(tmp_path, capsys):
    archives.oscd_city(tmp_path / "data", "rio")
    archives.label_tif(tmp_path / "data/rio/cm/cm.tif", np.ones((40, 50)))
    lines = info(capsys, tmp_path / "data", "-o", "window=20", "--sample", 2)
    assert lines[2] == "test: 6 images; found 1 of 10 listed images, brasilia is the first missing"
    assert lines[3].startswith("train: ") and "expected images for the train split of OSCD, found none" in lines[3]
    assert "read 2 images: 20 x 20 pixels, 2 dates, uint16, 0 % no data" in lines


def test_own_images_with_options(tmp_path, capsys):
    write(tmp_path / "data/a.tif", archives.cube(["B04", "B03", "B02"], 9, 9))
    lines = info(capsys, tmp_path / "data", "--split", "all", "-o", "band_order=[B04, B03, B02]")
    assert lines[:3] == [f"images in {tmp_path / 'data'}, no labels", "bands: B02 B03 B04", "all: 1 images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "eurosta"], "error: data set 'eurosta': expected one of eurosat, bigearthnet"),
        (["--split", "dev"], "error: split: expected one of train, val, test, all, got 'dev'"),
        (["-o", "colour=3"], "error: option 'colour' of eurosat: expected one of transforms, fraction"),
        (["-o", "fraction=most"], "error: options of eurosat: "),
        (["-o", "fraction"], "error: option 'fraction': expected KEY=VALUE"),
        (["--bands", "B04,B99"], "error: band 'B99': expected a band of sentinel2"),
        (["--sheet", "no/such/folder.png"], "error: no/such/folder.png: expected a file in a folder that exists"),
        (["--sheet", "sheet.abc"], "error: sheet.abc: expected a picture file that can be written"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    archives.eurosat(tmp_path / "data", numbers=(1, 2), size=8)
    err = info(capsys, tmp_path / "data", *arguments, code=2)
    assert err.startswith(message) and err.count("\n") == 1


def test_bands_in_front_of_the_folder_do_not_hide_it(capsys):
    assert main(["info", "--bands", "B02", "B03", "some/folder"]) == 2
    assert capsys.readouterr().err.startswith("error: expected the folder before --bands, got none")


def test_options_are_yaml():
    texts = ["a=1", "b=[B02, B03]", "c=x=y", "d=true", "e=images/*.tif"]
    assert parse_options(texts) == {"a": 1, "b": ["B02", "B03"], "c": "x=y", "d": True, "e": "images/*.tif"}
    with pytest.raises(UserError, match="expected KEY=VALUE with a YAML value"):
        parse_options(["a=["])
