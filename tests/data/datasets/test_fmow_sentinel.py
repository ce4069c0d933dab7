# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from spectralgpt.data.bands import SENTINEL2_12
from spectralgpt.data.datasets.fmow_sentinel import FMoWSentinel
from spectralgpt.errors import UserError
from tests.data.datasets import archives

ROWS = [
    ("airport", 0, 6, 2016, 20, 31),
    ("airport", 0, 10, 2019, 24, 24),
    ("multi-unit_residential", 12, 0, 2016, 9, 40),
    ("zoo", 3, 1, 2017, 33, 16),
]


def names(data):
    return [data.name(index) for index in range(len(data))]


def test_images_of_any_size_by_band_name_with_their_class(tmp_path):
    data = FMoWSentinel(archives.fmow(tmp_path, ROWS))
    records = [data.read(index) for index in range(4)]
    assert [record.pixels.shape for record in records] == [(12, *row[4:]) for row in ROWS]
    assert all(archives.levels(record) == archives.expected(SENTINEL2_12) for record in records)
    assert [data.classes[record.label] for record in records] == [row[0] for row in ROWS]
    assert data.name(0) == "fmow-sentinel/train/airport/airport_0/airport_0_6.tif"
    cirrus = FMoWSentinel(tmp_path, "train", ["B10", "B8A"]).read(3)
    assert archives.levels(cirrus) == archives.expected(["B10", "B8A"])


def test_there_are_62_classes():
    classes = FMoWSentinel.classes
    assert len(classes) == 62 and list(classes) == sorted(classes) and classes[0] == "airport" and classes[-1] == "zoo"


@pytest.mark.parametrize(
    ("prefix", "listed"), [("", "fmow-sentinel/"), ("fmow-sentinel/", ""), ("", ""), ("train/../", "x")]
)
def test_paths_with_and_without_the_archives_folder(tmp_path, prefix, listed):
    if listed == "x":
        archives.fmow(tmp_path, ROWS[:1], "", "../elsewhere/")
        with pytest.raises(UserError, match="expected plain paths below this folder"):
            FMoWSentinel(tmp_path)
        return
    data = FMoWSentinel(archives.fmow(tmp_path, ROWS, prefix, listed))
    assert archives.levels(data.read(3)) == archives.expected(SENTINEL2_12)


def test_the_original_release_lists_no_paths(tmp_path):
    archives.fmow(tmp_path, ROWS)
    lines = [line.rpartition(",")[0] for line in (tmp_path / "train.csv").read_text().splitlines()]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    data = FMoWSentinel(tmp_path)
    assert data.name(2).endswith(
        "/train/multi-unit_residential/multi-unit_residential_12/multi-unit_residential_12_0.tif"
    )
    assert data.read(2).pixels.shape == (12, 9, 40)


def test_splits_have_their_own_lists(tmp_path):
    archives.fmow(tmp_path, ROWS[:1], split="test_gt")
    archives.fmow(tmp_path, ROWS[1:], split="val")
    assert (len(FMoWSentinel(tmp_path, "test")), len(FMoWSentinel(tmp_path, "val"))) == (1, 3)
    with pytest.raises(UserError, match=r"expected the list of images, as train.csv or train_62classes.csv"):
        FMoWSentinel(tmp_path)
    (tmp_path / "mine.csv").write_bytes((tmp_path / "val.csv").read_bytes())
    assert len(FMoWSentinel(tmp_path, csv=tmp_path / "mine.csv")) == 3


def test_years_sizes_and_fractions(tmp_path):
    archives.fmow(tmp_path, ROWS)
    assert names(FMoWSentinel(tmp_path, years=[2016])) == [names(FMoWSentinel(tmp_path))[n] for n in (0, 2)]
    large = FMoWSentinel(tmp_path, min_size=20)
    assert len(large) == 2 and large.notes == ["2 of 4 images left out: smaller than 20"]
    assert np.bincount(FMoWSentinel(tmp_path, fraction=0.5).labels(), minlength=62)[[0, 30, 61]].tolist() == [1, 1, 1]
    with pytest.raises(UserError, match=r"train.csv: expected images for the train split of fMoW-Sentinel, found none"):
        FMoWSentinel(tmp_path, years=[1999])


def test_a_missing_image_is_named_when_read_or_left_out(tmp_path):
    archives.fmow(tmp_path, ROWS)
    (tmp_path / names(FMoWSentinel(tmp_path))[1]).unlink()
    with pytest.raises(
        UserError, match=r"train.csv, image_path fmow-sentinel/train/airport/airport_0/airport_0_10.tif"
    ):
        FMoWSentinel(tmp_path).read(1)
    some = FMoWSentinel(tmp_path, partial=True)
    assert len(some) == 3 and some.notes[0].startswith("found 3 of 4 listed images")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("category,image_path\nairport\n", r"train.csv, line 2: expected 2 columns as in the header, got 1"),
        ("class,image_path\nairport,a.tif\n", "expected column category, there is class, image_path"),
        ("category,path\nairport,a.tif\n", "expected column image_path, or category, location_id, image_id instead"),
        ("category,image_path\nairprot,a.tif\n", "column category: expected one of the 62 classes, got 'airprot'"),
        ("category,image_path\nairport,a.tif\n", "expected its images below .*, a.tif is not there"),
        ("category,image_path\n", "expected images for the train split"),
        ("", "expected column category, there is nothing"),
        (b"category\xff\xfe", "expected a text table, cannot read it"),
    ],
)
def test_wrong_lists(tmp_path, text, message):
    (tmp_path / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        FMoWSentinel(tmp_path)
