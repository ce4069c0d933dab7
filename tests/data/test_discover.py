# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.discover import band_files, find_scenes, raster_driver
from spectralgpt.errors import UserError
from tests.data.rasters import noise, write


@pytest.mark.parametrize(
    ("start", "driver"),
    [
        (b"II*\x00", "GTiff"),
        (b"MM\x00*", "GTiff"),
        (b"II+\x00", "GTiff"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JP2OpenJPEG"),
        (b"<VRTDataset", None),
        (b"\x89PNG\r\n", None),
        (b"", None),
    ],
)
def test_formats_go_by_content(tmp_path, start, driver):
    path = tmp_path / "image.tif"
    path.write_bytes(start + b"....")
    assert raster_driver(path) == driver


def tiny(path):
    return write(path, noise(1, 8, 8))


def test_a_folder_of_bands_is_one_scene_and_previews_are_none(tmp_path):
    for name in ("a_B02.jp2", "a_B8A.TIF", "a_TCI.tif", "a_preview.tif", "a_SCL_20m.tif", "MSK_QUALIT_B02.tif"):
        tiny(tmp_path / name)
    (tmp_path / "a_B03.tif").write_text("no raster")
    assert find_scenes(tmp_path) == [tmp_path]
    assert {name: [path.name for path in paths] for name, paths in band_files(tmp_path, SENTINEL2).items()} == {
        "B02": ["a_B02.jp2"],
        "B8A": ["a_B8A.TIF"],
    }


def test_scenes_of_both_kinds_are_found_below_a_root(tmp_path):
    for name in (
        "x/one.tif",
        "x/two.dat",
        "y/B2.tif",
        "y/B3.tif",
        "y/deeper/three.tif",
        ".hidden/four.tif",
        "x/.five.tif",
    ):
        tiny(tmp_path / name)
    (tmp_path / "x/notes.txt").write_text("II")
    found = [path.relative_to(tmp_path).as_posix() for path in find_scenes(tmp_path)]
    assert found == ["x/one.tif", "x/two.dat", "y", "y/deeper/three.tif"]
    assert find_scenes(tmp_path / "x/one.tif") == [tmp_path / "x/one.tif"]


def test_a_product_with_resolution_folders_is_one_scene(tmp_path):
    images = tmp_path / "S2A.SAFE/GRANULE/L2A/IMG_DATA"
    for name in ("R10m/T_B02_10m.jp2", "R20m/T_B02_20m.jp2", "R20m/T_B8A_20m.jp2", "R60m/T_B01_60m.jp2"):
        tiny(images / name)
    tiny(tmp_path / "S2A.SAFE/GRANULE/L2A/QI_DATA/MSK_CLDPRB_20m.jp2").unlink()
    assert find_scenes(tmp_path) == [images]
    assert len(band_files(images, SENTINEL2)["B02"]) == 2


def test_links_are_followed_but_not_in_circles(tmp_path):
    tiny(tmp_path / "elsewhere/one.tif")
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "root/link")
    os.symlink(tmp_path / "root", tmp_path / "elsewhere/back")
    assert find_scenes(tmp_path / "root") == [tmp_path / "root/link/one.tif"]


def test_nothing_found_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        find_scenes(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="found none in this folder"):
        find_scenes(tmp_path)
