# SPDX-License-Identifier: Apache-2.0
"""Positions that begin as geometry: near places are alike, far ones are not, and every place is its own."""

from __future__ import annotations

import pytest
import torch

import spectralgpt
from spectralgpt.train.initialize import sines_and_cosines, start_from_geometry


def test_neighbours_are_alike_in_every_direction() -> None:
    table = sines_and_cosines(8, 12, 96)
    alike = torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=2)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=1).float()
    distance = torch.cdist(places, places)
    assert alike[distance == 1].min() > alike[(distance > 1) & (distance < 20)].mean() + 0.2
    assert alike[distance > 0].max() < 0.99
    assert table.square().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("dim", [4, 6, 96])
def test_any_width_is_filled(dim: int) -> None:
    assert sines_and_cosines(3, 5, dim).shape == (15, dim)


def test_the_autoencoder_takes_them_as_learnable_positions() -> None:
    torch.manual_seed(0)
    model = spectralgpt.create_autoencoder("tiny", image_size=(32, 48), bands=6)
    start_from_geometry(model)
    for part, dim in ((model.encoder, 128), (model.decoder, 96)):
        assert torch.equal(part.positions.spatial, sines_and_cosines(4, 6, dim))
        assert part.positions.spatial.requires_grad
        assert 0.5 < part.positions.spectral.std() < 0.9
    assert 0.5 < model.decoder.mask_token.std() < 0.9


def test_flat_positions_stay_as_they_are() -> None:
    model = spectralgpt.create_autoencoder("tiny", image_size=16, bands=3, position_embedding="flat")
    before = model.encoder.positions.flat.detach().clone()
    start_from_geometry(model)
    assert torch.equal(before, model.encoder.positions.flat)
