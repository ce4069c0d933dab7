# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from spectralgpt.data.bands import SENTINEL2_12
from spectralgpt.data.datasets.folder import Folder
from spectralgpt.errors import UserError
from tests.data.datasets import archives
from tests.data.datasets.archives import BEN_BANDS
from tests.data.rasters import at, band_folder, noise, write


def images(root, names=("a", "b", "c"), bands=BEN_BANDS, folder="images", suffix="", **profile):
    for number, name in enumerate(names):
        pixels = archives.cube(bands, 12, 15, seed=number)
        place = {"transform": at(10, left=500_000 + 1000 * number), **profile}
        write(root / folder / f"{name}{suffix}.tif", pixels, bands, **place)
    return root


def names(data):
    return [data.name(index) for index in range(len(data))]


def table(root, *lines):
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return "list.csv"


def test_images_alone_are_found_below_the_folder(tmp_path):
    images(tmp_path, folder="x/y")
    data = Folder(tmp_path, "all")
    assert (names(data), data.task, data.bands) == (["x/y/a.tif", "x/y/b.tif", "x/y/c.tif"], "none", SENTINEL2_12)
    record = data.read(1)
    assert archives.levels(record) == archives.expected(SENTINEL2_12) and set(data[1]) == {"image"}
    assert archives.levels(Folder(tmp_path, "all", ["B12", "B02"]).read(0)) == archives.expected(["B12", "B02"])


def test_folders_of_bands_are_images(tmp_path):
    for name in ("one", "two"):
        band_folder(tmp_path / "scenes" / name, {"B02": (10, noise(20, 30)), "B05": (20, noise(10, 15))})
    data = Folder(tmp_path, "all", ["B05", "B02"], images="scenes/*")
    assert names(data) == ["scenes/one", "scenes/two"] and data.read(0).pixels.shape == (2, 20, 30)


def test_files_without_band_names_need_their_order(tmp_path):
    write(tmp_path / "a.tif", archives.cube(["B08", "B04", "B01"], 9, 9))
    with pytest.raises(UserError, match="expected band names in the 3 band descriptions, found none"):
        Folder(tmp_path, "all").read(0)
    data = Folder(tmp_path, "all", band_order=["nir", "red", "-"])
    assert data.bands == ("B04", "B08") and archives.levels(data.read(0)) == archives.expected(["B04", "B08"])


@pytest.mark.parametrize(
    ("image", "mask", "pattern", "masks"),
    [
        ("images/a.tif", "labels/a.tif", "images/*.tif", "labels/*.tif"),
        ("a_image.tif", "a_mask.tif", "*_image.tif", "*_mask.tif"),
        ("deep/a.tif", "deep/a_lab.tif", "*.tif", "*_lab.tif"),
    ],
)
def test_label_rasters_are_found_by_a_pattern(tmp_path, image, mask, pattern, masks):
    write(tmp_path / image, archives.cube(BEN_BANDS, 12, 15), BEN_BANDS)
    codes = np.full((12, 15), 4)
    codes[3:], codes[6:] = 9, 0
    archives.label_tif(tmp_path / mask, codes)
    data = Folder(tmp_path, "all", images=pattern, masks=masks, ignore=[0])
    assert (names(data), data.task, data.classes) == ([image], "segmentation", ("4", "9"))
    assert [int(value) for value in data.read(0).mask[::3, 0]] == [0, 1, 255, 255]
    named = Folder(
        tmp_path, "all", images=pattern, masks=masks, classes=["crop", "water"], codes=[9, 4], ignore=[0],
        colours=["#aa8800", "#0000ff"],
    )  # fmt: skip
    assert named.colours == ("#aa8800", "#0000ff")
    assert [int(value) for value in named.read(0).mask[::3, 0]] == [1, 0, 255, 255]


def test_label_rasters_must_fit(tmp_path):
    images(tmp_path, ["a"])
    archives.label_tif(tmp_path / "labels/a.tif", np.full((12, 15), 7))
    options = {"images": "images/*.tif", "masks": "labels/*.tif"}
    with pytest.raises(UserError, match=r"labels/a.tif: expected class codes out of 0 1 2, got 7 in 100 %"):
        Folder(tmp_path, "all", **options, classes=["x", "y", "z"]).read(0)
    with pytest.raises(UserError, match="classes: expected a name for each of 2 codes, at most 254, got 1"):
        Folder(tmp_path, "all", **options, classes=["x"], codes=[1, 2])
    archives.label_tif(tmp_path / "labels/a.tif", np.full((15, 12), 7))
    with pytest.raises(UserError, match=r"expected labels of 12 x 15 pixels as the image, got \(15, 12\)"):
        Folder(tmp_path, "all", **options).read(0)
    write(tmp_path / "labels/a.tif", np.full((1, 12, 15), 7, np.uint8), crs="EPSG:32633")
    with pytest.raises(UserError, match="expected the image's coordinate system EPSG:32632, got EPSG:32633"):
        Folder(tmp_path, "all", **options).read(0)


def test_no_data_in_a_label_raster_is_no_label(tmp_path):
    images(tmp_path, ["a"])
    codes = np.full((1, 12, 15), -9999, np.float32)
    codes[:, 2:] = 1
    write(tmp_path / "labels/a.tif", codes, nodata=-9999)
    data = Folder(tmp_path, "all", images="images/*.tif", masks="labels/*.tif")
    assert data.classes == ("1",) and data.read(0).mask[:, 0].tolist() == [255] * 2 + [0] * 10
    write(tmp_path / "labels/a.tif", (codes == 1).astype(np.uint8), nodata=0)
    data = Folder(tmp_path, "all", images="images/*.tif", masks="labels/*.tif", codes=[0, 1])
    assert data.read(0).mask[:, 0].tolist() == [255] * 2 + [1] * 10


def test_a_table_gives_one_label_each(tmp_path):
    images(tmp_path)
    path = table(tmp_path, "label,path,note", "oak,images/b.tif,x", "ash,images/a.tif,", "oak,images/c.tif,")
    data = Folder(tmp_path, "all", table=path)
    assert (names(data), data.classes) == (["images/b.tif", "images/a.tif", "images/c.tif"], ("ash", "oak"))
    assert data.labels().tolist() == [1, 0, 1] and data.read(1).label == 0 and data.task == "single_label"
    given = Folder(tmp_path, "all", table=path, classes=["oak", "elm", "ash"])
    assert given.labels().tolist() == [0, 2, 0]
    with pytest.raises(UserError, match=r"list.csv, row 2, column label: expected oak, elm, got 'ash'"):
        Folder(tmp_path, "all", table=path, classes=["oak", "elm"])


def test_a_table_gives_several_labels(tmp_path):
    images(tmp_path)
    path = table(tmp_path, "path,label", "images/a.tif,oak;ash", "images/b.tif,elm", "images/c.tif,ash")
    data = Folder(tmp_path, "all", table=path)
    assert (data.task, data.classes) == ("multi_label", ("ash", "elm", "oak"))
    assert data.labels().tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert data.read(0).label.dtype == np.uint8 and data[0]["label"].tolist() == [1, 0, 1]


def test_a_table_gives_label_rasters_and_splits(tmp_path):
    images(tmp_path)
    archives.label_tif(tmp_path / "m.tif", np.arange(180).reshape(12, 15) % 3)
    path = table(
        tmp_path, "path,mask,split", "images/a.tif,m.tif,val", "images/b.tif,m.tif,train", "images/c.tif,m.tif,train"
    )
    assert names(Folder(tmp_path, "train", table=path)) == ["images/b.tif", "images/c.tif"]
    val = Folder(tmp_path, "val", table=path)
    assert names(val) == ["images/a.tif"] and val.classes == ("0", "1", "2") and val.read(0).mask.max() == 2
    with pytest.raises(UserError, match="for the test split, found none among 3; give the table a column split"):
        Folder(tmp_path, "test", table=path)


def test_without_a_column_the_place_decides_so_that_dates_stay_together(tmp_path):
    for number in range(12):
        for date in ("june", "july"):
            images(tmp_path, [f"{number}_{date}"], transform=at(10, left=500_000 + 1000 * number))
    sides = {
        split: set(names(Folder(tmp_path, split, shares={"train": 0.5, "val": 0.5}))) for split in ("train", "val")
    }
    assert len(sides["train"] | sides["val"]) == 24 and not sides["train"] & sides["val"]
    for side in sides.values():
        assert {name.replace("june", "july") for name in side} == {name for name in side if "july" in name}
    assert len(Folder(tmp_path, "all", fraction=0.25)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "list.csv"}, "list.csv: expected column path, there is file, label; rename or add it"),
        ({"table": "none.csv"}, "none.csv: expected a text table, no such file"),
        ({"table": "../list.csv"}, "expected plain paths below this folder"),
        ({"images": "images/a.tif"}, r"pattern 'images/a.tif': expected one \* in it"),
        ({"images": "images/*.jp2"}, "expected images for the all split of images, found none"),
        ({"sensor": "sentinel9"}, "sensor 'sentinel9': expected sentinel2"),
        ({"classes": ["a"], "colours": ["#000000"]}, "colours: expected one for each of 0 classes, got 1"),
    ],
)
def test_wrong_arguments(tmp_path, options, message):
    images(tmp_path)
    table(tmp_path, "file,label", "images/a.tif,x")
    with pytest.raises(UserError, match=message):
        Folder(tmp_path, "all", **options)


def test_wrong_tables(tmp_path):
    images(tmp_path)
    with pytest.raises(UserError, match="expected an image, no such file"):
        Folder(tmp_path, "all", table=table(tmp_path, "path", "images/z.tif")).read(0)
    with pytest.raises(UserError, match="expected plain paths below this folder"):
        Folder(tmp_path, "all", table=table(tmp_path, "path", "/vsicurl/http://x/a.tif")).read(0)
    with pytest.raises(UserError, match="column split: expected train, val, test, all, got 'dev'"):
        Folder(tmp_path, table=table(tmp_path, "path,split", "images/a.tif,dev"))
    with pytest.raises(UserError, match="row 1, column label: expected , got nothing"):
        Folder(tmp_path, "all", table=table(tmp_path, "path,label", "images/a.tif,"))
    with pytest.raises(
        UserError, match=r"list.csv: expected every image once, images/a.tif is there twice; remove one"
    ):
        Folder(tmp_path, "all", table=table(tmp_path, "path", "images/a.tif", "images/b.tif", "images/a.tif"))
    with pytest.raises(UserError, match="shares: expected shares of train, val and test that add up to 1"):
        Folder(tmp_path, shares={"train": 0.5})


def test_a_spectrometers_bands_come_from_the_tags_of_the_first_file(tmp_path):
    import rasterio

    for name in ("a", "b"):
        path = write(tmp_path / f"{name}.tif", noise(4, 8, 8, dtype=np.int16))
        with rasterio.open(path, "r+") as file:
            for number, centre in enumerate((0.45, 0.55, 0.66, 0.86), start=1):
                file.update_tags(number, wavelength=str(centre), wavelength_units="Micrometers")
    data = Folder(tmp_path, "all", sensor="hyperspectral")
    assert data.card.wavelengths == (0.45, 0.55, 0.66, 0.86) and data.read(1).pixels.shape == (4, 8, 8)
