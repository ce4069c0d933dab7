# SPDX-License-Identifier: Apache-2.0
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spectralgpt.data.batch import Batch, Views, to_images
from spectralgpt.data.convert import convert
from spectralgpt.data.normalize import Normalizer
from spectralgpt.data.record import IGNORE
from spectralgpt.data.shards import Shards
from spectralgpt.data.views import ViewConfig, draw_views, resize_mask, valid_tokens
from spectralgpt.errors import UserError
from tests.data.records import KINDS, Made

CROPS = ("random", "center", "whole")
PATCH = (3, 8, 8)


def views(dataset, normalizer="minmax", seed=5, replace_bad=False, **config):
    return Views(dataset, Normalizer(normalizer), ViewConfig(**{"size": 32, **config}), PATCH, seed, replace_bad)


def random_boxes(shape, count=2000, **config):
    shapes = np.tile(np.array(shape), (count, 1))
    keys = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    return np.array([view.box for view in draw_views(ViewConfig(**config), shapes, keys, 0)])


def test_random_boxes_have_the_area_and_ratio_asked_for():
    y, x, height, width = random_boxes((120, 100)).T
    assert (y >= 0).all() and (x >= 0).all() and (y + height <= 120).all() and (x + width <= 100).all()
    area, ratio = height * width / 12_000, width / height
    assert area.min() > 0.19 and area.max() <= 1 and ratio.min() > 0.73 and ratio.max() < 1.37
    assert abs(area.mean() - 0.55) < 0.03 and abs(np.log(ratio).mean()) < 0.03  # uniform, but for boxes that do not fit
    left = x / np.maximum(100 - width, 1)
    assert abs(left[width < 90].mean() - 0.5) < 0.03 and left.max() == 1 and left.min() == 0
    assert len({tuple(box) for box in random_boxes((120, 100))}) > 1990


def test_images_too_long_for_any_box_give_their_centre():
    boxes = random_boxes((8, 200), count=50, area=(0.9, 1.0))
    assert (boxes == [0, (200 - 11) // 2, 8, 11]).all()
    assert (random_boxes((200, 8), count=5, area=(0.9, 1.0)) == [(200 - 11) // 2, 0, 11, 8]).all()
    assert (random_boxes((1, 1), count=50) == [0, 0, 1, 1]).all()


def test_a_view_is_a_function_of_seed_epoch_and_sample():
    shapes, keys = np.full((6, 2), 90), np.array([(0, 3), (0, 4), (1, 3), (1, 4), (0, 3), (2, 2**40)])
    drawn = draw_views(ViewConfig(), shapes, keys, 7)
    assert drawn[0] == drawn[4] and len(set(drawn)) == 5
    for place in range(6):
        assert draw_views(ViewConfig(), shapes[:1], keys[place : place + 1], 7) == [drawn[place]]
    assert draw_views(ViewConfig(), shapes, keys, 8)[0] != drawn[0]
    many = draw_views(ViewConfig(), np.full((4000, 2), 90), np.stack([np.zeros(4000, int), np.arange(4000)], 1), 0)
    flips = np.array([view.flips for view in many])
    assert (abs(flips.mean(0) - 0.5) < 0.03).all() and abs(flips.all(1).mean() - 0.25) < 0.03
    still = draw_views(ViewConfig(vertical_flip=False), shapes, keys, 7)
    assert [view.flips for view in still] == [(False, view.flips[1]) for view in drawn]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("crop", CROPS)
def test_shards_and_files_give_the_same_batches(tmp_path, kind, crop):
    files = Made(kind, 12)
    convert(files, "made", tmp_path, num_workers=0, shard_size=150_000)
    keys = [(4, index) for index in (3, 0, 11, 7, 6)]
    one, other = (views(data, crop=crop).__getitems__(keys) for data in (files, Shards(tmp_path)))
    for field in fields(Batch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name
    assert one.pixels.dtype == torch.uint16


@pytest.mark.parametrize("crop", CROPS)
def test_batching_changes_no_sample(crop):
    data = views(Made("segmentation", 12), crop=crop)
    together = to_images(data.__getitems__([(1, i) for i in range(12)]), "cpu")
    alone = [to_images(data[1, i], "cpu") for i in range(12)]
    for key, value in together.items():
        assert torch.equal(value, torch.cat([sample[key] for sample in alone])), key


def test_images_are_torchs_resize_of_the_normalised_image():
    files = Made("none", 2, size=(48, 48))
    record = files.read(1)
    low, high = record.low[:, None, None], record.high[:, None, None]
    image = torch.from_numpy((record.pixels - low) / (high - low)).float()[None]
    whole = views(files, crop="whole", horizontal_flip=False, vertical_flip=False)[0, 1].images()["image"]
    torch.testing.assert_close(whole, F.interpolate(image, (32, 32), mode="bicubic", antialias=True), atol=2e-5, rtol=0)
    center = Views(files, Normalizer("minmax"), ViewConfig(size=32).evaluation(), PATCH)[0, 1].images()["image"]
    resized = F.interpolate(image, (36, 36), mode="bicubic", antialias=True)
    torch.testing.assert_close(center, resized[:, :, 2:34, 2:34], atol=2e-5, rtol=0)
    random = views(files, antialias=False)[0, 1]
    (y, x, height, width), flips = random.boxes[0].tolist(), random.flips[0].tolist()
    box = F.interpolate(image[:, :, y : y + height, x : x + width], (32, 32), mode="bicubic")
    box = box.flip([axis for axis, flip in zip((2, 3), flips, strict=True) if flip])
    torch.testing.assert_close(random.images()["image"], box, atol=2e-5, rtol=0)


class Painted(Made):
    """Images that show their masks: every band is 100 times the class."""

    def read(self, index):
        record = super().read(index)
        height, width = record.mask.shape
        mask = np.kron(np.random.default_rng(index).integers(0, 5, (4, 4)), np.ones((height // 4, width // 4)))
        mask = np.pad(mask, ((0, height - mask.shape[0]), (0, width - mask.shape[1])), mode="edge").astype(np.uint8)
        pixels = np.broadcast_to(mask.astype(np.uint16) * 100, record.pixels.shape)
        return replace(record, pixels=pixels, valid=None, mask=mask)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("kind", ["segmentation", "change"])
def test_masks_follow_their_images(crop, kind):
    batch = views(Painted(kind, 8, size=(60, 90)), "none", crop=crop).__getitems__([(0, i) for i in range(8)])
    sample = batch.images()
    image, mask = sample["image"], sample["mask"]
    assert mask.dtype == torch.int64 and batch.flips.any()
    agree = ((image.flatten(1, -3) - 100 * mask[:, None]).abs() < 40).float().mean()
    assert agree > 0.85, "all but the pixels at the edges of classes"
    if kind == "change":
        assert image.shape == (8, 2, 12, 32, 32) and torch.equal(image[:, 0], image[:, 1]), "one box for all dates"


def test_masks_without_resizing_stay_what_they_are():
    mask = np.random.default_rng(0).integers(0, 9, (32, 32)).astype(np.uint8)
    mask[3] = IGNORE
    config = ViewConfig(size=32, crop="whole")
    view = draw_views(config.evaluation("whole"), np.array([[32, 32]]), np.array([[0, 0]]), 0)[0]
    assert np.array_equal(resize_mask(mask, view, config), mask)
    assert np.array_equal(resize_mask(mask, view._replace(flips=(True, False)), config), mask[::-1])
    assert np.array_equal(resize_mask(mask, view._replace(flips=(False, True)), config), mask[:, ::-1])


class Holes(Made):
    """Images with a few invalid pixels anywhere; `fill` is what they hold."""

    def read(self, index):
        record = super().read(index)
        valid = np.random.default_rng(index).random(record.pixels.shape) > 0.002
        return replace(record, pixels=np.where(valid, record.pixels, 0).astype(record.pixels.dtype), valid=valid)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("kind", ["none", "change"])
def test_a_token_is_valid_if_no_invalid_pixel_can_enter_it(crop, antialias, kind):
    data = views(Holes(kind, 12, size=(20, 90)), "none", crop=crop, antialias=antialias)
    batch = data.__getitems__([(0, i) for i in range(12)])
    changed = batch.pixels.clone()
    for place, start in enumerate(batch.layout[:, 0].tolist()):
        valid = data.dataset.read(place).valid.ravel()
        changed.numpy()[start : start + valid.size][~valid] = 60_000
    one, other = batch.images(), replace(batch, pixels=changed).images()
    same = (one["image"] == other["image"]).reshape(12, -1, 4, 3, 4, 8, 4, 8).all(dim=(3, 5, 7)).flatten(2)
    valid = one["valid"].reshape(same.shape)
    assert same[valid].all(), "no invalid pixel in a valid token"
    assert 0.1 < valid.float().mean() < 0.9 and same[~valid].float().mean() < 0.2, (
        "and hardly a token given up for nothing"
    )


def test_images_without_holes_have_valid_tokens_only():
    data = Made("none", 3)
    assert views(data)[0, 1].valid.all() and views(data)[0, 1].valid.shape == (1, 4 * 4 * 4)
    record = data.read(1)
    view = draw_views(ViewConfig(size=32), np.array([record.pixels.shape[1:]]), np.array([[0, 1]]), 0)[0]
    assert valid_tokens(np.ones(record.pixels.shape, bool), view, ViewConfig(size=32), PATCH).all()


@pytest.mark.parametrize("method", ["minmax", "none"])
def test_invalid_pixels_normalise_to_zero(method):
    class Dead(Made):
        def read(self, index):
            record = super().read(index)
            valid = np.ones(record.pixels.shape, bool)
            valid[3] = False
            return replace(record, valid=valid, low=record.low + 7, high=record.high)

    image = views(Dead("none", 1), method)[0, 0].images()["image"]
    assert image[0, 3].abs().max() < 1e-6 and image[0, 2].abs().max() > 0.1


def test_bad_images_are_replaced_by_what_seed_epoch_and_place_decide():
    bad = set(range(0, 40, 5))
    data = views(Made("single_label", 40, bad=bad), replace_bad=True)
    batch = data.__getitems__([(2, i) for i in range(40)])
    assert {name for name, _ in batch.skipped} <= {f"folder/{i}.tif" for i in bad} and len(batch.skipped) >= 8
    assert batch.skipped[0][1].endswith("damaged raster (made so)")
    assert batch.sample_id.tolist() == list(range(40)), "masks and crops are those of the place"
    for place in bad:
        alone = data[2, place]
        assert alone.names == (batch.names[place],) and int(alone.label) == int(batch.label[place])
        assert batch.names[place] != f"folder/{place}.tif"
    others = {epoch: data[epoch, 0].names for epoch in range(8)}
    assert len(set(others.values())) > 3
    with pytest.raises(UserError, match=r"folder/0\.tif: damaged raster"):
        views(Made("single_label", 40, bad=bad))[2, 0]
    with pytest.raises(UserError, match="nor could 8 other images"):
        views(Made("none", 3, bad={0, 1, 2}), replace_bad=True)[0, 0]


def test_images_that_do_not_fit_together_are_named():
    class Mixed(Made):
        def read(self, index):
            record = super().read(index)
            return replace(record, pixels=record.pixels[: 12 - 3 * (index == 2)], label=None if index == 3 else 1)

    data = views(Mixed("none", 5))
    with pytest.raises(
        UserError, match=r"folder/2.tif: expected dates and bands \(12,\) as in folder/1.tif, got \(9,\)"
    ):
        data.__getitems__([(0, 1), (0, 2)])
    with pytest.raises(UserError, match=r"folder/3.tif and folder/1.tif: expected a label of both or of neither"):
        data.__getitems__([(0, 1), (0, 3)])


def test_types_of_pixels_may_differ_in_a_batch():
    class Mixed(Made):
        def read(self, index):
            record = super().read(index)
            return replace(record, pixels=record.pixels.astype((np.uint8, np.int16)[index % 2]))

    batch = views(Mixed("none", 2, dtype=np.uint8)).__getitems__([(0, 0), (0, 1)])
    assert batch.pixels.dtype == torch.float32


def test_wrong_sizes_are_explained():
    with pytest.raises(UserError, match="multiple of the patch's 8 x 8, got 30"):
        views(Made(), size=30)
    for wrong in ({"size": 0}, {"crop": "left"}, {"area": (0.5, 0.2)}, {"area": (0.5, 1.2)}, {"ratio": (0, 1)}):
        with pytest.raises(UserError, match="views"):
            ViewConfig(**wrong)


def test_windows_are_pixels_as_they_are_and_masks_follow_them():
    data = Made("segmentation", 6, size=(40, 70))
    for crop in ("window", "middle"):
        batch = views(data, size=32, crop=crop, horizontal_flip=False, vertical_flip=False, seed=2)
        for index in (1, 2, 4):
            sample, record = batch[0, index].images(), data.read(index)
            y, x, height, width = batch[0, index].boxes[0].tolist()
            assert (height, width) == (32, 32)
            raw = record.pixels[:, y : y + 32, x : x + 32].astype(np.float64)
            low, high = record.low[:, None, None], record.high[:, None, None]
            np.testing.assert_allclose(sample["image"][0].numpy(), (raw - low) / (high - low), atol=1e-5)
            np.testing.assert_array_equal(sample["mask"][0], record.mask[y : y + 32, x : x + 32])
        if crop == "middle":
            rows, columns = record.mask.shape
            assert (y, x) == ((rows - 32) // 2, (columns - 32) // 2)
    boxes = random_boxes((120, 100), size=32, crop="window")
    assert boxes[:, 0].max() == 88 and boxes[:, 1].max() == 68 and boxes[:, :2].min() == 0
    assert abs(boxes[:, 0].mean() - 44) < 2
    assert (random_boxes((20, 40), size=32, crop="window")[:, 2:] == 20).all(), "scaled up where it does not fit"


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "segmentation"])
def test_labels_outside_the_classes_are_refused_by_name(kind):
    data = Made(kind, 4)
    real = data.read

    def read(index):
        record = real(index)
        wrong = {"single_label": {"label": 5}, "multi_label": {"label": np.full(5, 2, np.uint8)}}
        return replace(record, **wrong.get(kind, {"mask": np.full_like(record.mask, 5)}))

    data.read = read
    with pytest.raises(UserError, match=r"folder/1\.tif: expected labels from 0 to [14], got [25]"):
        views(data)[0, 1]
