# SPDX-License-Identifier: Apache-2.0
"""That a training meets the same images whether they come from original files or shards, and how it meets bad ones."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from spectralgpt.data.batch import Batch
from spectralgpt.data.convert import convert
from spectralgpt.data.datasets import open_dataset
from spectralgpt.data.loader import EpochSampler, loader
from spectralgpt.data.scene_set import DataConfig
from spectralgpt.data.source import ImageViews, images, open_source, training_images
from spectralgpt.errors import UserError
from tests.data.datasets import archives
from tests.data.records import Made

PATCH = (3, 8, 8)
CPU = torch.device("cpu")


def made(kind, config, split="train", count=7, bad=(), bands=None):
    options = {"bands": bands} if bands else {}
    return ImageViews(Made(kind, count, bad=bad, **options), config, 16, PATCH, split, 3)


def batches(source, number=6, workers=0, **options):
    config = DataConfig(num_workers=workers, **options)
    return list(islice(training_images(source, EpochSampler(len(source), 3), 4, 0, config, CPU), number))


def same(left, right):
    return all(torch.equal(a[key], b[key]) for a, b in zip(left, right, strict=True) for key in ("image", "valid"))


def test_shards_and_files_train_on_the_same_bits(tmp_path):
    archives.eurosat(tmp_path / "archive")
    original = open_dataset("eurosat", tmp_path / "archive", "all", partial=True)
    convert(original, "eurosat", tmp_path / "shards")
    config = DataConfig(str(tmp_path / "archive"), "eurosat", train_split="all", options=("partial=true",))
    shards = DataConfig(str(tmp_path / "shards"), "shards", train_split="all")
    ours, theirs = (open_source(each, 16, PATCH, "train", 3) for each in (config, shards))
    assert isinstance(ours, ImageViews) and len(ours) == len(theirs) == len(original)
    assert ours.normalization == theirs.normalization and ours.normalization["method"] == "minmax"
    assert same(batches(ours), batches(theirs))
    assert same(batches(ours), batches(theirs, workers=2))


def test_training_crops_change_from_epoch_to_epoch_and_validation_does_not():
    train, held_out = made("none", DataConfig()), made("none", DataConfig(), "val")
    assert not torch.equal(train[0, 2]["image"], train[1, 2]["image"])
    assert torch.equal(held_out[0, 2]["image"], held_out[1, 2]["image"])
    assert train[0, 2]["image"].shape == (12, 16, 16) and train[0, 2]["valid"].shape == (16,)
    assert train.origin(2)[0] == "folder/2.tif"
    assert "7 images as views of 16 x 16" in train.describe()


def test_dates_are_samples_of_their_own():
    source, pairs = made("change", DataConfig()), Made("change", 7)
    assert len(source) == 14 and "14 images" in source.describe()
    batch = batches(source, 1)[0]
    assert batch["image"].shape == (4, 12, 16, 16) and batch["valid"].shape == (4, 16)
    assert batch["sample_id"].tolist() == [index for _, index in EpochSampler(14, 3).keys(0, 4)]
    for index in (6, 7):  # both dates of the fourth pair, the same pixels as in it
        date = made("change", DataConfig(), "val").dataset.read(index)
        pair = pairs.read(3)
        assert date.name == f"folder/3.tif, date {index - 5}" and date.mask is None
        assert (date.pixels == pair.pixels[index - 6]).all() and (date.valid == pair.valid[index - 6]).all()
        assert (date.low == pair.low[index - 6]).all() and (date.high == pair.high[index - 6]).all()


def test_bands_repeat_to_fill_the_last_group():
    batch = made("none", DataConfig(), bands=("B02", "B03", "B04", "B08"))
    assert batch[0, 0]["image"].shape == (4, 16, 16) and batch[0, 0]["valid"].shape == (8,)


def test_bad_images_are_replaced_counted_and_too_many_stop(caplog):
    source = made("none", DataConfig(), bad=(4,))
    assert len(batches(source, max_bad=0.2)) == 6
    assert caplog.text.count("folder/4.tif") >= 1
    with pytest.raises(UserError, match=r"at most 1\.00% bad images, got 1 of 7: folder/4.tif"):
        batches(source)
    with pytest.raises(UserError, match="damaged raster"):
        made("none", DataConfig(), "val", bad=(4,))[0, 4]


def test_raw_batches_travel_as_integers():
    batch = next(loader(made("none", DataConfig()), EpochSampler(7, 3), 4))
    assert isinstance(batch, Batch) and batch.pixels.dtype == torch.uint16
    assert images(batch, CPU)["image"].dtype == torch.float32


def test_an_unknown_data_set_is_named_beside_all_that_a_recipe_takes():
    with pytest.raises(UserError, match=r"data\.dataset: expected one of eurosat, .*folder, or shards, got 'eurosatt'"):
        DataConfig("archive", "eurosatt")


@pytest.mark.parametrize("key", ["options", "train_options"])
def test_shards_take_no_options_of_what_they_were_made_of(tmp_path, key):
    config = DataConfig(str(tmp_path), "shards", **{key: ("fraction=0.1",)})
    with pytest.raises(UserError, match=rf"data\.{key}: expected none with shards, .* got fraction=0\.1; choose by"):
        open_source(config, 16, PATCH, "train", 0)
