# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.stack import open_stack, read_array_stack
from spectralgpt.errors import UserError
from tests.data.rasters import at, noise, write

NAMES = ("B04", "B03", "B02")


def dates(folder, count=3, **profile):
    return [write(folder / f"{t}.tif", noise(3, 20, 30, seed=t), NAMES, **profile) for t in range(count)]


def test_dates_are_read_in_their_order_and_bands_by_name(tmp_path):
    paths = dates(tmp_path)
    stack = open_stack(paths[::-1], SENTINEL2, ("B02", "B04"))
    pixels, valid = stack.read(3, 5, 10, 11)
    assert pixels.shape == (3, 2, 10, 11) and pixels.dtype == np.float32 and valid.all()
    expected = [noise(3, 20, 30, seed=t)[[2, 0], 3:13, 5:16] for t in (2, 1, 0)]
    np.testing.assert_array_equal(pixels, expected)
    assert stack.shape == (20, 30) and stack.band_names == ("B02", "B04") and stack.crs.to_epsg() == 32632


@pytest.mark.parametrize(
    ("pixels", "profile", "message"),
    [
        (noise(3, 20, 31), {}, r"0\.tif, .*x\.tif: expected the same size, got \(20, 30\) and \(20, 31\)"),
        (
            noise(3, 20, 30),
            {"crs": "EPSG:32633"},
            r"0\.tif, .*x\.tif: expected the same coordinate system, got .*32632.*32633",
        ),
        (noise(3, 20, 30), {"transform": at(10, left=500_010)}, r"same grid, .*500000 5000000 at 10 x -10 and 500010"),
        (noise(3, 20, 30), {"transform": at(10.01)}, "same grid"),
    ],
)
def test_dates_that_do_not_lie_on_one_grid_are_both_named(tmp_path, pixels, profile, message):
    paths = [*dates(tmp_path, 2), write(tmp_path / "x.tif", pixels, NAMES, **profile)]
    with pytest.raises(UserError, match=message) as caught:
        open_stack(paths, SENTINEL2, NAMES)
    assert "\n" not in str(caught.value)


def test_rounding_of_the_grid_is_no_difference(tmp_path):
    paths = [*dates(tmp_path, 1), write(tmp_path / "x.tif", noise(3, 20, 30), NAMES, transform=at(10 + 1e-9))]
    assert len(open_stack(paths, SENTINEL2, NAMES).scenes) == 2
    with pytest.raises(UserError, match="at least one date"):
        open_stack([], SENTINEL2)


def test_arrays_of_dates(tmp_path):
    path = tmp_path / "scenes.npy"
    values = np.random.default_rng(0).random((5, 6, 7, 3), np.float32)
    np.save(path, values)
    stack = read_array_stack(path, SENTINEL2, NAMES, ("B02", "red"))
    np.testing.assert_array_equal(stack, values.transpose(0, 3, 1, 2)[:, [2, 0]])
    assert read_array_stack(path, SENTINEL2, NAMES).shape == (5, 3, 6, 7)
    with pytest.raises(UserError, match=r"\(dates, rows, columns, 2 bands\), got \(5, 6, 7, 3\)"):
        read_array_stack(path, SENTINEL2, NAMES[:2])
    with pytest.raises(UserError, match="expected band B11, there is B04 B03 B02"):
        read_array_stack(path, SENTINEL2, NAMES, ("B11",))


def test_arrays_that_are_none_or_hold_objects(tmp_path):
    path = tmp_path / "scenes.npy"
    with pytest.raises(UserError, match="expected a NumPy file of numbers"):
        read_array_stack(path, SENTINEL2, NAMES)
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(UserError, match="expected a NumPy file of numbers"):
        read_array_stack(path, SENTINEL2, NAMES)
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    with pytest.raises(UserError, match="got an archive"):
        read_array_stack(path.with_suffix(".npz"), SENTINEL2, NAMES)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="expected a NumPy file of numbers"):
        read_array_stack(path, SENTINEL2, NAMES)
