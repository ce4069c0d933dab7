# SPDX-License-Identifier: Apache-2.0
import gc
import logging
import re

import numpy as np
import pytest

from spectralgpt.data.scene_set import DataConfig, Side, open_scenes
from spectralgpt.errors import UserError
from tests.data.rasters import at, band_folder, noise, write

RGB = ("B02", "B03", "B04")


def config(root, **options):
    return DataConfig(root=str(root), **{"bands": RGB, **options})


def patch_files(root, count, size=24, **profile):
    for i in range(count):
        write(root / f"class/{i}.tif", noise(3, size, size, seed=i), RGB, transform=at(10, left=10_000 * i), **profile)
    return root


def held_out(scenes):
    return {scenes.scenes[origin.scene].name for origin in scenes.val_origins(24)}


def test_the_east_of_a_scene_is_held_out_behind_a_strip(tmp_path):
    folder = band_folder(
        tmp_path / "s", {"B02": (10, noise(60, 600)), "B05": (20, noise(30, 300)), "B01": (60, noise(10, 100))}
    )
    scenes = open_scenes(config(folder, bands=("B02", "B05", "B01"), val_fraction=0.25))
    (train,), val = scenes.train_sides(24), scenes.val_origins(24)
    assert train == Side(0, 0, scenes.scenes[0].columns_apart(450)) and 438 <= train.right < 450
    assert [(origin.row, origin.column) for origin in val[:2]] == [(0, 450), (0, 474)]
    assert len(val) == 2 * 6 and all(origin.column + 24 <= 600 and origin.row + 24 <= 60 for origin in val)


@pytest.mark.parametrize("windows", [(24, 48), (48, 24)])
def test_what_is_held_out_does_not_depend_on_the_window(tmp_path, windows):
    """The stages of a progressive training share one validation side."""
    write(tmp_path / "a.tif", noise(3, 60, 600), RGB)
    scenes = open_scenes(config(tmp_path, val_fraction=0.25))
    sides = [scenes.train_sides(window) for window in windows]
    assert (
        sides[0] == sides[1]
        and min(origin.column for window in windows for origin in scenes.val_origins(window)) == 450
    )


def test_patch_files_are_held_out_whole_and_keep_their_side(tmp_path):
    few = held_out(open_scenes(config(patch_files(tmp_path, 40))))
    patch_files(tmp_path, 60)
    write(tmp_path / "before/them.tif", noise(3, 24, 24), RGB, transform=at(10, top=7))
    many = open_scenes(config(tmp_path))
    assert few == held_out(many) & {f"class/{i}.tif" for i in range(40)}
    assert 0.1 < len(held_out(many)) / 61 < 0.4
    train = {many.scenes[side.scene].name for side in many.train_sides(24)}
    assert len(train | held_out(many)) == 61 and not train & held_out(many)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_no_side_of_few_files_is_empty(tmp_path, fraction):
    scenes = open_scenes(config(patch_files(tmp_path, 3), val_fraction=fraction))
    assert 1 <= len(held_out(scenes)) <= 2


def test_images_of_one_place_stay_on_one_side(tmp_path):
    for date in ("2020", "2021", "2022"):
        patch_files(tmp_path / date, 8)
    names = held_out(open_scenes(config(tmp_path)))
    places = {name.split("/", 1)[1] for name in names}
    assert names == {f"{date}/{place}" for date in ("2020", "2021", "2022") for place in places}


def test_images_of_a_single_place_are_cut_like_scenes(tmp_path):
    for date in ("2020", "2021"):
        write(tmp_path / f"{date}.tif", noise(3, 24, 200), RGB)
    scenes = open_scenes(config(tmp_path))
    assert scenes.train_sides(24) == [Side(0, 0, 150), Side(1, 0, 150)]


def test_nothing_is_held_out_on_request(tmp_path):
    scenes = open_scenes(config(patch_files(tmp_path, 3), val_fraction=0.0))
    assert len(scenes.train_sides(24)) == 3 and scenes.val_origins(24) == []


@pytest.mark.parametrize(("size", "method"), [(24, "minmax"), (600, "percentile")])
def test_normalisation_follows_the_size_unless_told(tmp_path, size, method):
    write(tmp_path / "a.tif", noise(3, 24, size), RGB)
    assert open_scenes(config(tmp_path)).normalizations[0].method == method
    other = {"minmax": "percentile", "percentile": "minmax"}[method]
    assert open_scenes(config(tmp_path, normalization=other)).normalizations[0].method == other


def test_unusable_images_are_skipped_named_and_counted(tmp_path, caplog):
    patch_files(tmp_path, 4)
    write(tmp_path / "labels.tif", noise(1, 24, 24))
    write(tmp_path / "empty.tif", np.zeros((3, 24, 24), np.uint16), RGB)
    whole = write(tmp_path / "torn.tif", noise(3, 24, 24), RGB)
    whole.write_bytes(whole.read_bytes()[:-2000])
    with caplog.at_level(logging.WARNING):
        scenes = open_scenes(config(tmp_path))
    assert set(scenes.skipped) == {"labels.tif", "empty.tif", "torn.tif"} and len(scenes.scenes) == 4
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "skipped 3 of 7 images: empty.tif, labels.tif, torn.tif; the first: empty.tif: expected"
    )


def test_if_no_image_is_left_the_first_reason_is_given(tmp_path):
    write(tmp_path / "a.tif", noise(3, 24, 24), RGB)
    write(tmp_path / "b.tif", noise(3, 24, 24), RGB)
    with pytest.raises(UserError, match=r"none of 2 images can be used; the first: .*a\.tif: expected band B11"):
        open_scenes(config(tmp_path, bands=("B02", "B11")))
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/a\.tif: expected band B11"):
        open_scenes(config(tmp_path / "a.tif", bands=("B02", "B11")))


def test_data_sets_share_the_scenes_while_in_use(tmp_path):
    write(tmp_path / "a.tif", noise(3, 24, 100), RGB)
    scenes = open_scenes(config(tmp_path))
    assert open_scenes(config(tmp_path)) is scenes
    assert open_scenes(config(tmp_path, val_fraction=0.5)) is not scenes
    del scenes
    gc.collect()
    write(tmp_path / "b.tif", noise(3, 24, 100), RGB)
    assert len(open_scenes(config(tmp_path)).scenes) == 2


def test_memory_is_filled_up_to_the_limit(tmp_path):
    patch_files(tmp_path, 4)
    size = 3 * 24 * 24 * 3 / 2**30
    scenes = open_scenes(config(tmp_path, memory_limit=2.5 * size))
    assert [scene.is_loaded for scene in scenes.scenes] == [True, True, False, False]


def test_windows_that_do_not_fit_are_explained(tmp_path):
    write(tmp_path / "a.tif", noise(3, 40, 100), RGB)
    scenes = open_scenes(config(tmp_path, val_fraction=0.25))
    with pytest.raises(
        UserError, match=r"a\.tif: expected an image of at least 48 x 48 pixels, got 40 x 100; choose a smaller"
    ):
        scenes.train_sides(48)
    with pytest.raises(
        UserError, match=r"a\.tif: expected at least 32 columns for val, got 25 of 100; change data\.val_fraction"
    ):
        scenes.val_origins(32)
    assert scenes.train_sides(32) == [Side(0, 0, 75)]
    scenes = open_scenes(config(tmp_path, val_fraction=0.001))
    with pytest.raises(UserError, match="expected at least 32 columns for val, got 0 of 100"):
        scenes.val_origins(32)


def test_validation_windows_without_data_are_left_out_and_counted(tmp_path):
    pixels = noise(3, 64, 128)
    pixels[:, :32, 64:96], pixels[:, 40:, 96:] = 0, 0  # one of four windows empty, one three quarters
    write(tmp_path / "a.tif", pixels, RGB)
    scenes = open_scenes(config(tmp_path, val_fraction=0.5))
    assert [(origin.row, origin.column) for origin in scenes.val_origins(32)] == [(0, 96), (32, 64)]
    assert "2 validation windows of 32 x 32 (2 left out as no data)" in scenes.describe(32)
    pixels[:, :, 64:] = 0
    write(tmp_path / "b/a.tif", pixels, RGB)
    with pytest.raises(UserError, match="expected validation windows that are half valid, found none"):
        open_scenes(config(tmp_path / "b", val_fraction=0.5)).val_origins(32)


def test_one_line_says_what_was_read(tmp_path):
    patch_files(tmp_path, 5)
    write(tmp_path / "z.tif", noise(3, 16, 24), RGB, transform=at(10, top=7))
    write(tmp_path / "labels.tif", noise(1, 24, 24))
    line = open_scenes(config(tmp_path)).describe(24)
    assert line.startswith(f"{tmp_path}: 6 images (1 skipped, 1 unused), 16 x 24 to 24 x 24 pixels, 0 % no data; ")
    assert "bands B02 B03 B04; minmax normalisation; " in line and "\n" not in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, r"data\.val_fraction: expected a number from 0 to below 1, got 1\.0"),
        (
            {"normalization": "zscore"},
            r"data\.normalization: expected auto, percentile, minmax, none or a .*, got 'zscore'",
        ),
        ({"bands": ()}, r"data\.bands: expected at least one"),
        (
            {"dataset": "folder", "band_order": ("B02",)},
            r"data\.band_order: expected none with data\.dataset folder; .* in data\.options",
        ),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**options)


def test_options_from_a_recipe_may_be_lists(tmp_path):
    write(tmp_path / "a.tif", noise(4, 24, 100))
    scenes = open_scenes(config(tmp_path, bands=["nir", "B02"], band_order=["B02", "-", "B08", "-"]))
    assert scenes.card.names == ("B08", "B02")
    with pytest.raises(UserError, match="'B77': expected a band of sentinel2"):
        open_scenes(config(tmp_path, bands=("B77",)))
    with pytest.raises(UserError, match="sensor 'modis': expected sentinel2"):
        open_scenes(config(tmp_path, sensor="modis"))
