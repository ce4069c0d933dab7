# SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest
import rasterio

from spectralgpt.data.bands import SENTINEL2_12
from spectralgpt.data.datasets.oscd import OSCD, TEST, TRAIN
from spectralgpt.errors import UserError
from tests.data.datasets import archives
from tests.data.rasters import at, write


def change(shape=(40, 50), box=np.s_[5:10, 20:30]):
    mask = np.zeros(shape, np.uint8)
    mask[box] = 1
    return mask


def original(root, city="paris", **options):
    """images/<city>, train_labels/<city>/cm/<city>-cm.tif with 1 and 2."""
    archives.oscd_city(root / "images", city, **options)
    archives.label_tif(root / "train_labels" / city / "cm" / f"{city}-cm.tif", change() + 1)
    return root


def test_pairs_by_band_name_with_a_mask_of_0_and_1(tmp_path):
    data = OSCD(original(tmp_path), partial=True)
    record = data.read(0)
    assert (len(data), data.name(0), data.task) == (1, "paris", "change")
    assert record.pixels.shape == (2, 12, 40, 50) and record.low.shape == (2, 12)
    before, after = archives.levels(record)
    assert before == archives.expected(SENTINEL2_12) and after == [level + 10 for level in before]
    np.testing.assert_array_equal(record.mask, change())
    assert (record.crs, record.transform) == (None, None)
    sample = data[0]
    assert sample["image"].shape == (2, 12, 40, 50) and sample["mask"].sum() == 50
    assert len(data.plot(sample).get_axes()) == 3


def test_the_city_lists_are_the_originals():
    assert (len(TRAIN), len(TEST), len({*TRAIN, *TEST})) == (14, 10, 24)


@pytest.mark.parametrize("layout", ["merged", "long names", "bare"])
def test_other_layouts(tmp_path, layout):
    images = {"merged": "", "bare": "images", "long names": "Onera Satellite Change Detection dataset - Images"}
    archives.oscd_city(tmp_path / images[layout], "rio", rect="" if layout == "bare" else "_rect")
    if layout == "merged":
        folder = tmp_path / "rio" / "cm"
    elif layout == "bare":
        folder = tmp_path / "test_labels" / "rio" / "cm"
    else:
        folder = tmp_path / "Onera Satellite Change Detection dataset - Test Labels" / "rio" / "cm"
    archives.label_tif(folder / "cm.tif", change() + 1)
    data = OSCD(tmp_path, "test", partial=True)
    np.testing.assert_array_equal(data.read(0).mask, change())


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_maps_as_png_hold_0_and_255(tmp_path, bands):
    original(tmp_path)
    (tmp_path / "train_labels" / "paris" / "cm" / "paris-cm.tif").unlink()
    pixels = np.repeat(change()[None] * 255, bands, axis=0)
    if bands == 4:
        pixels[3] = 255
    write(tmp_path / "train_labels/paris/cm/cm.png", pixels, driver="PNG", crs=None, transform=None)
    np.testing.assert_array_equal(OSCD(tmp_path, partial=True).read(0).mask, change())


def test_other_codes_and_sizes_are_refused(tmp_path):
    original(tmp_path)
    path = tmp_path / "train_labels" / "paris" / "cm" / "paris-cm.tif"
    for codes, message in (
        (change(), r"expected 1 and 2, or 0 and 255, for unchanged and changed, got \[0, 1\]"),
        (change() * 3 + 1, r"got \[1, 4\]"),
        (change((40, 49)) + 1, r"expected the first date's \(40, 50\) pixels, got \(40, 49\)"),
    ):
        archives.label_tif(path, codes)
        with pytest.raises(UserError, match=message):
            OSCD(tmp_path, partial=True).read(0)
    path.unlink()
    with pytest.raises(UserError, match=r"expected a change map paris-cm.tif or cm.png, found none"):
        OSCD(tmp_path, partial=True).read(0)


def test_dates_of_two_sizes_are_cut_to_the_upper_left(tmp_path):
    data = OSCD(original(tmp_path, shapes=((40, 50), (41, 48))), partial=True)
    record = data.read(0)
    assert record.pixels.shape == (2, 12, 40, 48)
    np.testing.assert_array_equal(record.mask, change()[:, :48])
    assert data.notes[-1] == "paris: dates of (40, 50) and (41, 48) pixels cut to (40, 48), from the upper left corner"


def test_georeferenced_dates_are_cut_to_their_common_ground(tmp_path):
    places = (at(10), at(10, left=500_000 + 32, top=5_000_000 + 18))
    data = OSCD(original(tmp_path, shapes=((40, 50), (40, 50)), transforms=places), partial=True)
    record = data.read(0)
    assert record.pixels.shape == (2, 12, 38, 47)
    np.testing.assert_array_equal(record.mask, change()[:38, 3:])
    assert record.transform == (10, 0, 500_030, 0, -10, 5_000_000)
    raw = archives.cube(["B04"], 40, 50, seed=3)[0]
    red = SENTINEL2_12.index("B04")
    np.testing.assert_array_equal(record.pixels[0, red], raw[:38, 3:])
    np.testing.assert_array_equal(record.pixels[1, red], raw[2:, :47] + 1000)
    assert "by georeference, the second begins -1.80 rows and 3.20 columns later" in data.notes[-1]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (at(20), "expected pixels of the first date's size"),
        (at(10, left=600_000), "they share no pixel"),
    ],
)
def test_dates_that_do_not_match(tmp_path, second, message):
    original(tmp_path, transforms=(at(10), second))
    with pytest.raises(UserError, match=message):
        OSCD(tmp_path, partial=True)


def test_dates_in_two_coordinate_systems(tmp_path):
    original(tmp_path, transforms=(at(10), at(10)))
    for path in (tmp_path / "images/paris/imgs_2_rect").iterdir():
        with rasterio.open(path, "r+") as file:
            file.crs = "EPSG:32633"
    with pytest.raises(UserError, match="expected the coordinate system of the first date, EPSG:32632, got EPSG:32633"):
        OSCD(tmp_path, partial=True)


def test_windows_cover_every_pixel_and_keep_the_citys_extremes(tmp_path):
    original(tmp_path, transforms=(at(10), at(10)))
    red = archives.cube(["B04"], 40, 50)
    red[:, 39, 49] = 9999
    write(tmp_path / "images/paris/imgs_1_rect/B04.tif", red)
    data = OSCD(tmp_path, window=16, partial=True)
    whole = OSCD(tmp_path, partial=True).read(0)
    covered = np.zeros((40, 50), int)
    for index in range(len(data)):
        record = data.read(index)
        row, column = map(int, record.name.split("/")[1].split("_"))
        here = np.s_[..., row : row + 16, column : column + 16]
        np.testing.assert_array_equal(record.pixels, whole.pixels[here])
        np.testing.assert_array_equal(record.mask, whole.mask[here])
        np.testing.assert_array_equal(record.low, whole.low)
        np.testing.assert_array_equal(record.high, whole.high)
        assert record.transform == (10, 0, 500_000 + 10 * column, 0, -10, 5_000_000 - 10 * row)
        covered[here] += 1
    assert covered.min() == 1 and len(data) == 3 * 4 and record.high.max() == 9999
    assert len(OSCD(tmp_path, window=16, stride=8, partial=True)) == 4 * 6
    with pytest.raises(UserError, match="paris: expected at least 41 x 41 pixels, got"):
        OSCD(tmp_path, window=41, partial=True)
    with pytest.raises(UserError, match="stride: expected at least 1 pixel, got 0"):
        OSCD(tmp_path, window=16, stride=0, partial=True)


def test_worker_processes_get_a_copy_that_reads_the_same(tmp_path):
    data = OSCD(original(tmp_path), window=16, partial=True)
    data.read(0)
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy.read(5).pixels, data.read(5).pixels)
    assert len(pickle.dumps(data)) < 50_000


def test_missing_cities(tmp_path):
    original(tmp_path)
    with pytest.raises(UserError, match="found 1 of 14 listed images, abudhabi is the first missing"):
        OSCD(tmp_path)
    with pytest.raises(UserError, match="expected images for the test split of OSCD, found none"):
        OSCD(tmp_path, "test", partial=True)


def test_cities_of_ones_own_split(tmp_path):
    for city in ("paris", "here", "there"):
        original(tmp_path, city)
    cities = {"train": ["here", "paris"], "val": ["there"]}
    names = {split: [data.name(i) for i in range(len(data))] for split in ("train", "val", "all")
             for data in [OSCD(tmp_path, split, cities=cities)]}  # fmt: skip
    assert names == {"train": ["here", "paris"], "val": ["there"], "all": ["here", "paris", "there"]}
    with pytest.raises(UserError, match=r"split 'test': expected one of train, val; option cities="):
        OSCD(tmp_path, "test", cities=cities)
    with pytest.raises(UserError, match="cities: expected every image once, here is there twice"):
        OSCD(tmp_path, cities={"train": ["here"], "val": ["here"]})
    with pytest.raises(UserError, match="expected plain paths below this folder"):
        OSCD(tmp_path, cities={"train": ["../here"]})
    with pytest.raises(UserError, match="split 'val': expected one of train, test"):
        OSCD(tmp_path, "val")


def test_dates_in_the_wrong_order_are_refused(tmp_path):
    dates = original(tmp_path) / "images" / "paris" / "dates.txt"
    dates.write_text("date_1: 20161130\ndate_2: 20171107\n")
    assert len(OSCD(tmp_path, partial=True)) == 1
    dates.write_text("date_1: 20171107\ndate_2: 20161130\n")
    with pytest.raises(UserError, match=r"dates.txt: expected the earlier date as imgs_1, got 20171107 then 20161130"):
        OSCD(tmp_path, partial=True)


def test_a_map_in_another_system_is_refused(tmp_path):
    archives.oscd_city(tmp_path / "images", "paris", transforms=(at(10), at(10)))
    cm = tmp_path / "train_labels" / "paris" / "cm" / "paris-cm.tif"
    write(cm, change()[None] + 1, crs="EPSG:32631", transform=at(10))
    with pytest.raises(UserError, match="EPSG:32631"):
        OSCD(tmp_path, partial=True).read(0)
