# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from spectralgpt.data.bands import SENTINEL2_12
from spectralgpt.data.datasets import open_dataset
from spectralgpt.data.datasets.eurosat import EuroSAT
from spectralgpt.data.splits import eurosat
from spectralgpt.errors import UserError
from tests.data.datasets import archives
from tests.data.rasters import write


def test_bands_come_by_name_although_b8a_is_the_last_of_the_file(tmp_path):
    data = EuroSAT(archives.eurosat(tmp_path), "all", partial=True)
    record = data.read(0)
    assert data.bands == SENTINEL2_12
    assert archives.levels(record) == archives.expected(SENTINEL2_12)
    assert record.pixels.dtype == np.uint16 and record.crs == "EPSG:32632" and record.valid is None
    np.testing.assert_array_equal(record.low, record.pixels.min(axis=(1, 2)))
    np.testing.assert_array_equal(record.high, record.pixels.max(axis=(1, 2)))
    some = EuroSAT(tmp_path, "all", ["B8A", "B10", "red"], partial=True)
    assert archives.levels(some.read(3)) == archives.expected(["B8A", "B10", "B04"])


def test_splits_are_the_committed_ones(tmp_path):
    archives.eurosat(tmp_path, size=8)
    sides = {}
    for split in ("train", "val", "test"):
        try:
            data = EuroSAT(tmp_path, split, partial=True)
        except UserError:
            continue
        sides |= {data.name(index): split for index in range(len(data))}
    assert sides == {name: eurosat()[name] for name in sides} and len(sides) == 12
    assert len(EuroSAT(tmp_path, "all", partial=True)) == 12


def test_samples_have_torchgeo_keys_and_go_through_transforms(tmp_path):
    archives.eurosat(tmp_path)
    data = EuroSAT(tmp_path, "all", partial=True, transforms=lambda sample: sample | {"seen": True})
    sample = data[7]
    assert set(sample) == {"image", "label", "seen"}
    assert sample["image"].dtype == torch.float32 and sample["image"].shape == (12, 16, 16)
    assert sample["label"].dtype == torch.int64 and data.classes[sample["label"]] == "Forest"
    assert data.labels().tolist() == [0] * 6 + [1] * 6
    assert data.plot(sample).get_axes()


def test_a_fraction_takes_as_many_of_every_class(tmp_path):
    archives.eurosat(tmp_path, size=8)
    data = EuroSAT(tmp_path, "all", fraction=0.5, partial=True)
    assert np.bincount(data.labels()).tolist() == [3, 3]
    assert len(data) == 6 and data.name(0).startswith("AnnualCrop/")


@pytest.mark.parametrize("inner", ["tif", "EuroSAT_MS", "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"])
def test_the_folder_of_the_unpacked_archive_serves(tmp_path, inner):
    archives.eurosat(tmp_path / inner, numbers=(1,), size=8)
    assert len(EuroSAT(tmp_path, "all", partial=True)) == 2


def test_missing_images_are_an_error_unless_asked_for(tmp_path):
    archives.eurosat(tmp_path, size=8)
    with pytest.raises(UserError, match=r"found 12 of 27000 listed images, AnnualCrop/AnnualCrop_7.tif is the first"):
        EuroSAT(tmp_path, "all")
    assert EuroSAT(tmp_path, "all", partial=True).notes == [
        "found 12 of 27000 listed images, AnnualCrop/AnnualCrop_7.tif is the first missing"
    ]


def test_wrong_archives_and_arguments(tmp_path):
    with pytest.raises(UserError, match="expected the folders AnnualCrop, Forest"):
        EuroSAT(tmp_path)
    with pytest.raises(UserError, match="expected a folder of EuroSAT, found none"):
        EuroSAT(tmp_path / "nowhere")
    archives.eurosat(tmp_path, numbers=(1,), size=8)
    with pytest.raises(UserError, match="split: expected one of train, val, test, all, got 'validation'"):
        EuroSAT(tmp_path, "validation", partial=True)
    with pytest.raises(UserError, match="band 'B13': expected a band of sentinel2"):
        EuroSAT(tmp_path, "all", ["B13"], partial=True)
    with pytest.raises(UserError, match="option 'window' of eurosat: expected one of transforms, fraction"):
        open_dataset("eurosat", tmp_path, window=8)


def test_images_that_are_not_eurosat(tmp_path):
    path = tmp_path / "AnnualCrop" / "AnnualCrop_1.tif"
    write(path, archives.cube(["B04", "B03", "B02"], 8, 8))
    data = EuroSAT(tmp_path, "all", partial=True)
    with pytest.raises(UserError, match=r"AnnualCrop_1.tif: expected 13 bands, B01 .* B12 B8A, got 3"):
        data.read(0)
    write(path, archives.cube(archives.FMOW_ORDER, 8, 8), archives.FMOW_ORDER)
    with pytest.raises(UserError, match="expected band 9 to be B09, its description says 'B8A'"):
        data.read(0)
    write(path, np.zeros((13, 8, 8), np.uint16))
    with pytest.raises(UserError, match="expected an image with data, got no-data in every pixel"):
        data.read(0)
    path.unlink()
    with pytest.raises(UserError, match="expected an image, no such file"):
        data.read(0)


def test_no_data_becomes_validity_and_stays_out_of_the_extremes(tmp_path):
    pixels = archives.cube(archives.EUROSAT_ORDER, 8, 8)
    pixels[:, 2:4] = 0
    write(tmp_path / "AnnualCrop" / "AnnualCrop_1.tif", pixels)
    record = EuroSAT(tmp_path, "all", partial=True).read(0)
    assert not record.valid[:, 2:4].any() and record.valid.mean() == 0.75
    assert (record.low > 50).all()
