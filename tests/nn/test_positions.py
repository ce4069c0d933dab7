# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from spectralgpt.nn import PositionEmbedding, resample_spatial, resample_spectral

GRID = (3, 4, 6)


def test_separable_positions_add_place_and_spectrum():
    positions = PositionEmbedding(GRID, 5)
    table = positions(GRID)
    token = (2 * 4 + 1) * 6 + 3  # group 2, row 1, column 3
    torch.testing.assert_close(table[token], positions.spatial[1 * 6 + 3] + positions.spectral[2], rtol=0, atol=0)
    assert table.shape == (72, 5)


@pytest.mark.parametrize("flat", [False, True])
def test_ids_keep_selects_rows_of_the_table(flat):
    positions = PositionEmbedding(GRID, 5, flat=flat)
    ids = torch.tensor([[0, 71, 5], [40, 3, 3]])
    torch.testing.assert_close(positions(GRID, ids), positions(GRID)[ids], rtol=0, atol=0)


def test_initial_values_have_the_published_spread():
    torch.manual_seed(0)
    assert PositionEmbedding((4, 12, 12), 64).spatial.std().item() == pytest.approx(0.02, rel=0.03)


def test_same_size_is_returned_as_it_is():
    rows = torch.randn(24, 5)
    assert resample_spatial(rows, (4, 6), (4, 6)) is rows


def test_resampling_keeps_rows_and_columns_apart():
    """A ramp along x stays one along x, at half-pixel centres; torch's bicubic kernel bends it by less than 0.05."""
    ramp = torch.arange(6.0).repeat(4, 1).reshape(24, 1)
    resized = resample_spatial(ramp, (4, 6), (8, 12)).reshape(8, 12)
    expected = (torch.arange(12.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(resized[:, 4:-4], expected.expand(8, 12)[:, 4:-4], rtol=0, atol=0.05)


def test_resampling_is_torchs_bicubic_kernel():
    impulse = torch.eye(8)[3].repeat(4, 1).reshape(32, 1)
    row = resample_spatial(impulse, (4, 8), (8, 16)).reshape(8, 16)[0]
    expected = torch.tensor([-0.10546875, 0.26171875, 0.87890625, 0.87890625, 0.26171875, -0.10546875])
    torch.testing.assert_close(row[4:10], expected)  # the cubic with a = -0.75 at distances 1.25, 0.75, 0.25


def test_resampling_treats_each_grid_of_rows_on_its_own():
    first, second = torch.randn(24, 5), torch.randn(24, 5)
    both = resample_spatial(torch.cat([first, second]), (4, 6), (7, 5))
    torch.testing.assert_close(both[:35], resample_spatial(first, (4, 6), (7, 5)))
    torch.testing.assert_close(both[35:], resample_spatial(second, (4, 6), (7, 5)))


@pytest.mark.parametrize("flat", [False, True])
def test_resize_keeps_what_was_resampled_on_the_fly(flat):
    positions = PositionEmbedding(GRID, 5, flat=flat)
    before = positions((3, 6, 3)).detach()
    positions.resize((6, 3))
    torch.testing.assert_close(positions((3, 6, 3)), before, rtol=0, atol=1e-7)
    assert positions.grid == (3, 6, 3)


def test_resize_to_the_same_size_keeps_the_parameter():
    positions = PositionEmbedding(GRID, 5)
    parameter = positions.spatial
    positions.resize((4, 6))
    assert positions.spatial is parameter


def test_resampling_on_the_fly_is_differentiable():
    positions = PositionEmbedding(GRID, 5)
    positions((3, 8, 8)).square().sum().backward()
    assert positions.spatial.grad.abs().min() > 0


def test_spectral_resampling_is_numpy_interp_along_wavelength():
    centres, wanted = [0.9, 0.5, 2.2, 0.6], [0.4, 0.55, 0.6, 1.3, 3.0]
    rows = torch.randn(4, 7, dtype=torch.float64)
    order = np.argsort(centres)
    expected = np.stack([np.interp(wanted, np.sort(centres), rows.numpy()[order, d]) for d in range(7)], axis=1)
    np.testing.assert_allclose(resample_spectral(rows, centres, wanted).numpy(), expected, rtol=1e-12)


def test_spectral_resampling_to_the_same_groups_changes_no_bit():
    rows = torch.randn(4, 7)
    assert torch.equal(resample_spectral(rows, [0.9, 0.5, 2.2, 0.6], [0.9, 0.5, 2.2, 0.6]), rows)


def test_spectral_resampling_survives_groups_at_one_wavelength():
    assert resample_spectral(torch.randn(3, 2), [0.5, 0.5, 0.5], [0.5, 0.7]).isfinite().all()


def test_move_spectrum_is_the_same_for_both_forms():
    separable, flat = PositionEmbedding(GRID, 5), PositionEmbedding(GRID, 5, flat=True)
    flat.flat.data = separable(GRID).detach().clone()
    for positions in (separable, flat):
        positions.move_spectrum([0.5, 0.8, 2.0], [0.6, 1.0])
    torch.testing.assert_close(separable((2, 4, 6)), flat((2, 4, 6)))
    assert flat.flat.shape == (48, 5)
