# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from spectralgpt.errors import UserError
from spectralgpt.heads import SpectralPool, feature_maps, pooled_features
from spectralgpt.heads.features import pyramid_layers
from tests.heads.small import autoencoder, classifier


@pytest.fixture
def encoder():
    return autoencoder().encoder


def test_intermediate_tokens_are_those_on_the_way(encoder):
    image = torch.rand(2, 12, 32, 32)
    last, first = encoder.intermediate(image, [-1, 0])
    assert torch.equal(last, encoder(image))
    (raw,) = encoder.intermediate(image, [1], norm=False)
    assert torch.equal(encoder.norm(raw), last)
    assert torch.equal(encoder.blocks[1](first), raw)
    assert encoder.intermediate(image, []) == []


def test_blocks_after_the_last_one_asked_for_do_not_run(encoder):
    encoder.blocks[1].forward = None
    assert encoder.intermediate(torch.rand(1, 12, 32, 32), [0])[0].shape == (1, 64, 48)


def test_unknown_layers(encoder):
    with pytest.raises(UserError, match="layers: expected block indices from -2 to 1, got 2"):
        encoder.intermediate(torch.rand(1, 12, 32, 32), [0, 2])


def test_maps_lie_as_the_tokens_do(encoder):
    image = torch.rand(1, 12, 16, 32)
    tokens = encoder(image)
    (mean,), (concat,) = feature_maps(encoder, image), feature_maps(encoder, image, pool="concat")
    assert mean.shape == (1, 48, 2, 4) and concat.shape == (1, 4 * 48, 2, 4)
    place = [(group * 2 + 1) * 4 + 3 for group in range(4)]  # (group*h + y)*w + x
    torch.testing.assert_close(concat[0, :, 1, 3], tokens[0, place].flatten())
    torch.testing.assert_close(mean[0, :, 1, 3], tokens[0, place].mean(0))
    assert [level.shape[1] for level in feature_maps(encoder, image, (0, 1))] == [48, 48]


def test_learnt_pooling_starts_as_the_mean_and_weighs_groups(encoder):
    pool, tokens = SpectralPool("learned", 4), torch.rand(2, 4, 6, 5)
    torch.testing.assert_close(pool(tokens), tokens.mean(1))
    with torch.no_grad():
        pool.weight.copy_(torch.tensor([[0.0, 0.0, 2.0, 0.0]]))
        pool.bias.fill_(1.0)
    torch.testing.assert_close(pool(tokens), 2 * tokens[:, 2] + 1)


def test_pooled_features_are_what_the_classifier_sees():
    image = torch.rand(2, 12, 32, 32)
    for pool, channels in (("mean", 48), ("concat", 192)):
        model = classifier(spectral_pool=pool)
        torch.testing.assert_close(pooled_features(model.encoder, image, pool), model.embed(image))
        assert model.embed(image).shape == (2, channels)
    with pytest.raises(UserError, match="pool: expected one of mean, concat, got 'learned'"):
        pooled_features(model.encoder, image, "learned")


def test_the_published_average_leaves_the_first_token_out():
    model, image = classifier(pool_skip_first=True), torch.rand(2, 12, 32, 32)
    (tokens,) = model.encoder.intermediate(image, norm=False)
    torch.testing.assert_close(model.embed(image), model.encoder.norm(tokens[:, 1:].mean(1)))


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(1, (0, 0, 0, 0)), (2, (0, 0, 1, 1)), (4, (0, 1, 2, 3)), (12, (2, 5, 8, 11)), (6, (1, 2, 4, 5))],
)
def test_pyramid_layers_are_spread(depth, layers):
    assert pyramid_layers(depth) == layers
