# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from spectralgpt.data.resample import Axis, resample


def grid(pixels, valid, rows, columns, window):
    row, column, height, width = window
    return resample(pixels, valid, rows.taps(row, height), columns.taps(column, width))


@pytest.mark.parametrize(("factor", "shift"), [(2, 0), (2, 1), (6, 0), (6, 3), (1, 0)])
def test_a_plane_stays_a_plane(factor, shift):
    """Grid pixel x is centred at (x + 0.5 + shift) / factor - 0.5 band pixels from the first band pixel's centre."""
    rows, columns = Axis(shift / factor, 1 / factor, 20), Axis(shift / factor, 1 / factor, 30)
    y, x = np.mgrid[:20, :30].astype(np.float32)
    values, valid = grid(3 * y - 2 * x, np.ones((20, 30), bool), rows, columns, (0, 0, 19 * factor, 29 * factor))
    centre_y = (np.arange(19 * factor)[:, None] + 0.5 + shift) / factor - 0.5
    centre_x = (np.arange(29 * factor) + 0.5 + shift) / factor - 0.5
    expected = 3 * np.clip(centre_y, 0, 19) - 2 * np.clip(centre_x, 0, 29)
    assert valid.all()
    np.testing.assert_allclose(values, expected, atol=1e-4)


def test_any_window_has_the_bits_of_the_whole():
    rng = np.random.default_rng(0)
    pixels, valid = rng.random((23, 31), np.float32) * 9000, rng.random((23, 31)) > 0.2
    rows, columns = Axis(0.37, 1 / 6, 23), Axis(-1.2, 1 / 3, 31)
    whole = grid(pixels, valid, rows, columns, (0, 0, 140, 100))
    for _ in range(60):
        row, column = rng.integers(0, 130), rng.integers(0, 90)
        height, width = rng.integers(1, 141 - row), rng.integers(1, 101 - column)
        y, x = rows.taps(row, height), columns.taps(column, width)
        (top, bottom), (left, right) = y.span, x.span
        part = pixels[top:bottom, left:right], valid[top:bottom, left:right]
        values, ok = resample(*part, y.shifted(top), x.shifted(left))
        np.testing.assert_array_equal(values, whole[0][row : row + height, column : column + width])
        np.testing.assert_array_equal(ok, whole[1][row : row + height, column : column + width])


def test_invalid_pixels_never_mix_in():
    rng = np.random.default_rng(1)
    pixels, valid = rng.uniform(10, 20, (12, 12)).astype(np.float32), rng.random((12, 12)) > 0.3
    spoiled = np.where(valid, pixels, np.float32(np.nan))
    axis = Axis(0.0, 1 / 6, 12)
    values, ok = grid(pixels, valid, axis, axis, (0, 0, 72, 72))
    again, _ = grid(spoiled, valid, axis, axis, (0, 0, 72, 72))
    np.testing.assert_array_equal(values, again)
    assert 10 <= values[ok].min() and values[ok].max() <= 20 and not values[~ok].any()
    np.testing.assert_array_equal(ok, np.kron(valid, np.ones((6, 6), bool)))  # valid where inside a valid pixel


def test_outside_of_the_band_is_invalid():
    axis = Axis(-2.0, 0.5, 4)  # grid pixels 0 to 3 lie before the band, 12 and on behind it
    _, ok = grid(np.ones((4, 4), np.float32), np.ones((4, 4), bool), axis, axis, (0, 0, 16, 16))
    inside = (np.arange(16) >= 4) & (np.arange(16) < 12)
    np.testing.assert_array_equal(ok, inside[:, None] & inside)


def test_rounding_noise_of_a_geotransform_blurs_nothing():
    axis = Axis(3 + 3e-9, 1 + 1e-12, 40)
    taps = axis.taps(0, 30)
    np.testing.assert_array_equal(taps.low, np.arange(3, 33))
    assert not taps.weight.any() and (taps.high == taps.low).all()
    assert Axis(0.0, 1.0, 40).is_identity(40) and not axis.is_identity(40)
