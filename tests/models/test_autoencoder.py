# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

import spectralgpt
from spectralgpt import ops
from spectralgpt.errors import UserError


def masked(batch, num_tokens, ratio=0.75):
    return ops.random_cube_mask(torch.arange(batch), num_tokens, ratio, seed=0)


def card(*wavelengths):
    return SimpleNamespace(names=tuple(f"{w} um" for w in wavelengths), wavelengths=wavelengths)


SENSOR = card(0.44, 0.49, 0.56, 0.66, 0.70, 0.74, 0.78, 0.84, 0.86, 0.94, 1.6, 2.2)


def test_shapes_and_terms(small_autoencoder):
    torch.manual_seed(0)
    model = small_autoencoder(token_weight=0.5, spectral_weight=0.25)
    out = model(torch.rand(2, 12, 32, 32), masked(2, 64))
    assert out.latent.shape == (2, 16, 48)
    assert out.prediction.shape == (2, 64, 192)
    torch.testing.assert_close(out.loss, 0.5 * out.token_loss + 0.25 * out.spectral_loss)
    assert out.loss.requires_grad and not out.token_loss.requires_grad


def test_a_few_steps_learn(small_autoencoder):
    torch.manual_seed(0)
    model, image, mask = small_autoencoder(), torch.rand(2, 12, 32, 32), masked(2, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model(image, mask).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_invalid_tokens_are_never_scored(small_autoencoder):
    torch.manual_seed(0)
    model, image, mask = small_autoencoder(), torch.rand(1, 12, 32, 32), masked(1, 64)
    hidden = int(mask.mask[0].nonzero()[0])
    valid = torch.ones(1, 64, dtype=torch.bool)
    valid[0, hidden] = False
    group, y, x = hidden // 16, hidden % 16 // 4, hidden % 4
    changed = image.clone()
    changed[:, 3 * group : 3 * group + 3, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 100.0
    assert torch.equal(model(image, mask, valid=valid).loss, model(changed, mask, valid=valid).loss)
    assert model(changed, mask).loss > 2 * model(image, mask).loss


def test_padded_groups_are_scored_like_the_bands_they_repeat(small_autoencoder):
    torch.manual_seed(0)
    ten, twelve = small_autoencoder(bands=10), small_autoencoder()
    twelve.load_state_dict(ten.state_dict())
    image = torch.rand(2, 10, 32, 32)
    filled = torch.cat([image, image[:, 9:], image[:, 9:]], dim=1)
    torch.testing.assert_close(ten(image, masked(2, 64)).loss, twelve(filled, masked(2, 64)).loss)


def test_resize_is_permanent_and_changes_no_output(small_autoencoder):
    torch.manual_seed(0)
    model, image = small_autoencoder(), torch.rand(1, 12, 48, 48)
    mask = masked(1, 144)
    before = model(image, mask)
    model.resize(48)
    after = model(image, mask)
    torch.testing.assert_close(after.prediction, before.prediction)
    assert model.config.height_width == model.encoder.config.height_width == (48, 48)
    assert model.decoder.positions.spatial.shape == (36, 32)
    after.loss.backward()
    assert model.decoder.positions.spatial.grad is not None


def test_bands_move_by_wavelength(small_autoencoder, caplog):
    model = small_autoencoder(bands=SENSOR)
    model.normalization = {"method": "percentile"}
    old = model.encoder.positions.spectral.detach().clone()
    shifted = card(*SENSOR.wavelengths[3:9])
    with caplog.at_level(logging.INFO):
        model.adapt_bands(shifted)
    torch.testing.assert_close(model.encoder.positions.spectral, old[1:3])  # the groups 0.66-0.74 and 0.78-0.86
    assert "from 4 to 2 groups by wavelength" in caplog.text
    assert model.encoder.config.band_names == shifted.names
    assert model.normalization is None
    assert model(torch.rand(1, 6, 32, 32), masked(1, 32)).prediction.shape == (1, 32, 192)


def test_bands_cannot_move_without_wavelengths(small_autoencoder):
    with pytest.raises(UserError, match="expected wavelengths of old and new bands to go from 4 to 2 spectral groups"):
        small_autoencoder().adapt_bands(6)


def test_a_mask_for_another_size(small_autoencoder):
    with pytest.raises(UserError, match=r"mask: expected one over \(1, 64\) tokens for this image, got \(1, 576\)"):
        small_autoencoder()(torch.rand(1, 12, 32, 32), masked(1, 576))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_whole(autocast):
    torch.manual_seed(0)
    model = spectralgpt.create_autoencoder("tiny", image_size=16, depth=1, decoder_depth=1)
    image, mask = torch.rand(2, 12, 16, 16), masked(2, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = model(image, mask)
        out = torch.compile(model, backend="aot_eager", fullgraph=True)(image, mask)
    torch.testing.assert_close(out.loss, expected.loss)
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
