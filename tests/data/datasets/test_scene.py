# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import rasterio
import torch

from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.datasets.scene import DataConfig, open_windows
from spectralgpt.data.scene import Scene
from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.errors import UserError
from tests.data.rasters import at, band_folder, noise, write

SIX = ("B02", "B03", "B04", "B08", "B11", "B12")
PATCH = (3, 8, 8)


@pytest.fixture
def root(tmp_path):
    return synthetic_scene(tmp_path / "a.tif", 160, 800)


def windows(root, split="train", window=32, seed=0, **options):
    return open_windows(DataConfig(root=str(root), **{"bands": SIX, **options}), window, PATCH, split, seed)


def expected(root, data, index, epoch=0):
    """The window cut out by hand, unflipped."""
    name, row, column = data.origin(index, epoch)
    scene = Scene.open(root, SENTINEL2, SIX)
    pixels, valid = scene.read(row, column, 32, 32)
    return torch.from_numpy(np.where(valid, data.normalizations[name].apply(pixels), 0)), torch.from_numpy(valid)


def flips(image):
    return {(v, h): image.flip([-2] * v + [-1] * h) for v in (0, 1) for h in (0, 1)}


def test_a_sample_is_a_normalised_window_and_its_flips_are_drawn(root):
    data = windows(root)
    seen = set()
    for index in range(40):
        sample = data[2, index]
        assert sample["image"].dtype == torch.float32 and sample["image"].shape == (6, 32, 32)
        assert sample["valid"].dtype == torch.bool and sample["valid"].shape == (2 * 4 * 4,) and sample["valid"].all()
        assert sample["sample_id"].dtype == torch.int64 and sample["sample_id"].item() == index
        cut, _ = expected(root, data, index, epoch=2)
        (flip,) = [flip for flip, image in flips(cut).items() if torch.equal(image, sample["image"])]
        seen.add(flip)
    assert len(seen) == 4


def test_a_training_sample_is_a_function_of_seed_epoch_and_index(root):
    data, again, other = windows(root), windows(root), windows(root, seed=1)
    for key in ((0, 3), (5, 0), (0, 3)):
        assert torch.equal(data[key]["image"], again[key]["image"])
    assert not torch.equal(data[0, 3]["image"], data[1, 3]["image"])
    assert not torch.equal(data[0, 3]["image"], other[0, 3]["image"])


def test_a_batch_travels_in_the_type_of_the_files(tmp_path):
    pixels = noise(6, 64, 64)
    pixels[:, 50, 60] = 0  # in the second window
    write(tmp_path / "a.tif", pixels, SIX)
    data = windows(tmp_path / "a.tif", "val", val_fraction=0.5)
    assert data.__getitems__([(0, 0)]).pixels.dtype == torch.from_numpy(pixels).dtype
    clean, both = data.__getitems__([(0, 0)]).images()["image"], data.__getitems__([(0, 0), (0, 1)]).images()["image"]
    assert torch.equal(clean[0], both[0]) and torch.equal(both[1], data[0, 1]["image"])


def test_taking_a_sample_leaves_the_image_alone(tmp_path):
    pixels = np.random.default_rng(0).uniform(1, 2, (6, 32, 32)).astype(np.float32)
    data = windows(write(tmp_path / "a.tif", pixels, SIX), val_fraction=0.0)
    assert torch.equal(data[0, 0]["image"], data[0, 0]["image"])


def test_training_windows_lie_anywhere_on_the_train_side(root):
    data = windows(root)
    assert len(data) == (160 // 32) * (600 // 32)
    rows, columns = np.array([data.origin(index, epoch)[1:] for epoch in range(4) for index in range(len(data))]).T
    assert 0 <= rows.min() < 4 and 124 < rows.max() <= 128
    assert 0 <= columns.min() < 15 and 553 < columns.max() <= 568
    assert abs(rows.mean() - 64) < 6 and abs(columns.mean() - 284) < 27


def test_validation_windows_are_a_fixed_grid(root):
    data = windows(root, "val")
    assert len(data) == 5 * 6
    assert [data.origin(index) for index in (0, 1, 6)] == [("a.tif", 0, 600), ("a.tif", 0, 632), ("a.tif", 32, 600)]
    assert torch.equal(data[0, 7]["image"], data[9, 7]["image"])
    assert torch.equal(data[0, 7]["image"], expected(root, data, 7)[0])


@pytest.mark.parametrize("split", ["train", "val"])
def test_memory_and_disk_give_the_same_bits(tmp_path, split):
    coarse = noise(40, 60, seed=1)
    coarse[10:14, :] = 0
    root = band_folder(
        tmp_path, {"B02": (10, noise(80, 119)), "B03": (10, noise(80, 119, seed=2)), "B11": (20, coarse)}
    )
    options = {"bands": ("B02", "B03", "B11"), "val_fraction": 0.5}
    memory, disk = windows(root, split, **options), windows(root, split, memory_limit=0.0, **options)
    assert memory._scenes.scenes[0].is_loaded and not disk._scenes.scenes[0].is_loaded
    for index in range(len(memory)):
        for name, value in memory[3, index].items():
            assert torch.equal(value, disk[3, index][name])


def test_invalid_pixels_are_zero_and_their_tokens_invalid(tmp_path):
    pixels = noise(6, 64, 64)
    pixels[4, 9, 60] = 0  # second group of bands, second row of tokens, last column of the window
    path = write(tmp_path / "a.tif", pixels, SIX)
    data = windows(path, "val", val_fraction=0.5)
    (index,) = [index for index in range(len(data)) if data.origin(index)[1:] == (0, 32)]
    sample = data[0, index]
    assert sample["image"][4, 9, 28] == 0
    assert (~sample["valid"]).nonzero().tolist() == [[(1 * 4 + 1) * 4 + 3]]


def test_validity_flips_with_the_image(tmp_path):
    pixels = np.random.default_rng(0).uniform(1, 2, (6, 64, 640)).astype(np.float32)
    pixels[:, :, ::25] = 0
    path = write(tmp_path / "a.tif", pixels, SIX)
    data = windows(path, val_fraction=0.0)
    for index in range(20):
        sample = data[0, index]
        tokens = sample["image"].reshape(2, 3, 4, 8, 4, 8).ne(0).all(5).all(3).all(1).flatten()
        assert not tokens.all() and torch.equal(sample["valid"], tokens)


def test_training_prefers_windows_with_data(tmp_path):
    """Half of the scene is empty, but eight tries find the other half."""
    pixels = noise(6, 96, 700)
    pixels[:, :, :350] = 0
    data = windows(write(tmp_path / "a.tif", pixels, SIX), val_fraction=0.0)
    shares = np.array([data[0, index]["valid"].float().mean().item() for index in range(len(data))])
    assert np.mean(shares > 0.3) > 0.95


def test_without_a_half_valid_window_the_best_of_the_tries_is_taken(tmp_path):
    """Of 65 first rows, 12 show something: one draw in five, four of five with eight draws."""
    pixels = noise(6, 96, 700)
    pixels[:, 12:] = 0
    data = windows(write(tmp_path / "a.tif", pixels, SIX), val_fraction=0.0)
    rows = np.array([data.origin(index)[1] for index in range(len(data))])
    assert np.mean(rows < 12) > 0.6


def test_several_scenes_share_an_epoch(tmp_path):
    for i, size in enumerate((32, 64, 40)):
        write(tmp_path / f"{i}.tif", noise(6, size, size, seed=i), SIX, transform=at(10, left=i * 10_000))
    data = windows(tmp_path, val_fraction=0.0)
    names = [data.origin(index)[0] for index in range(len(data))]
    assert names == ["0.tif", "1.tif", "1.tif", "1.tif", "1.tif", "2.tif"]
    assert set(data.normalizations) == {"0.tif", "1.tif", "2.tif"}
    assert len(windows(tmp_path, "val", val_fraction=0.0)) == 0


def test_what_the_model_needs_to_know(root):
    data = windows(root, bands=("red", "B8A", "B2"))
    assert data.band_names == ("B04", "B8A", "B02") and data.wavelengths == (0.6646, 0.8647, 0.4924)
    assert data.describe() == windows(root, "val", bands=("red", "B8A", "B2")).describe()


def test_token_validity_follows_the_groups(tmp_path):
    """Four bands make two groups, the last band filling up the second; its hole counts there and nowhere else."""
    pixels = noise(4, 32, 32)
    pixels[3, 0, 0] = pixels[0, 31, 31] = 0
    path = write(tmp_path / "a.tif", pixels, ("B02", "B03", "B04", "B08"))
    data = windows(path, bands=("B02", "B03", "B04", "B08"), val_fraction=0.0)
    image, tokens = (data[0, 0][key] for key in ("image", "valid"))
    assert image.shape == (4, 32, 32) and tokens.shape == (2 * 16,)
    corners = tokens.reshape(2, 4, 4)
    assert (corners[0].logical_not().sum(), corners[1].logical_not().sum()) == (1, 1)
    first, second = corners[0].logical_not().nonzero()[0], corners[1].logical_not().nonzero()[0]
    assert (first + second).tolist() == [3, 3]  # opposite corners, whatever the flips


def test_a_spectrometer_brings_its_own_bands(tmp_path):
    pixels = noise(5, 32, 32)
    for name in ("a.tif", "b.tif"):
        with rasterio.open(write(tmp_path / name, pixels), "r+") as file:
            for number in file.indexes:
                file.update_tags(
                    number, wavelength=400 + 50 * number, fwhm=8, wavelength_units="nm", bbl=int(number != 2)
                )
    data = windows(tmp_path, sensor="hyperspectral", bands=(), val_fraction=0.0)
    assert data.band_names == ("1", "3", "4", "5") and data.wavelengths == (0.45, 0.55, 0.6, 0.65)
    assert data[0, 0]["image"].shape == (4, 32, 32) and data[0, 0]["valid"].shape == (32,)
    assert windows(tmp_path, sensor="hyperspectral", bands=("4", "1"), val_fraction=0.0).band_names == ("4", "1")


def test_windows_and_patches_must_fit(root):
    with pytest.raises(UserError, match="expected a multiple of the patch's 8 x 8 pixels, got 36"):
        windows(root, window=36)
    with pytest.raises(UserError, match=r"a\.tif: expected an image of at least 192 x 192 pixels, got 160 x 800"):
        windows(root, window=192)
    with pytest.raises(IndexError):
        windows(root)[0, 10_000]
