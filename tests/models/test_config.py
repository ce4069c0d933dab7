# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

from spectralgpt.errors import UserError
from spectralgpt.models import ModelConfig, make_config

CARD = SimpleNamespace(
    names=("B02", "B03", "B04", "B08", "B10"),
    wavelengths=(0.49, 0.56, 0.665, 0.842, 1.375),
    groups=(("B02", "B03"), ("B08", "B04")),
)


def test_a_size_fills_what_is_left_open():
    config = make_config("large", depth=2)
    assert (config.embed_dim, config.depth, config.num_heads, config.decoder_embed_dim) == (1024, 2, 16, 512)
    assert config.grid == (4, 12, 12)
    assert (config.num_tokens, config.num_values) == (576, 192)


def test_image_size_is_a_number_or_height_and_width():
    assert make_config("tiny", image_size=64).height_width == (64, 64)
    assert make_config("tiny", image_size=[64, 32]).grid == (4, 8, 4)


def test_groups_are_consecutive_and_the_last_band_fills_up():
    config = make_config("tiny", bands=10)
    assert config.groups == ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 9, 9))
    assert make_config("tiny", bands=4).groups == ((0, 1, 2), (3, 3, 3))


def test_a_sensor_card_brings_names_wavelengths_and_groups():
    config = make_config("tiny", bands=CARD, patch_size=(2, 8, 8))
    assert config.bands == 5
    assert config.band_names == CARD.names
    assert config.groups == ((0, 1), (3, 2))  # B10 is in no group: the model never looks at it
    assert config.group_wavelengths == pytest.approx(((0.49 + 0.56) / 2, (0.842 + 0.665) / 2))


def test_a_cards_groups_of_another_length_give_way_to_consecutive_ones():
    assert make_config("tiny", bands=CARD).groups == ((0, 1, 2), (3, 4, 4))


def test_names_alone():
    config = make_config("tiny", bands=["red", "green", "blue"])
    assert (config.bands, config.band_names, config.group_wavelengths) == (3, ("red", "green", "blue"), None)


def test_survives_json():
    config = make_config("tiny", bands=CARD, image_size=(32, 64), position_embedding="flat")
    fields = json.loads(json.dumps(config.to_dict()))
    assert make_config(fields.pop("name"), **fields) == config


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().depth = 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "giant"}, "name: expected one of tiny, small, base, large, huge, got 'giant'"),
        ({"embed_dimm": 64}, r"got 'embed_dimm'; did you mean embed_dim\?"),
        ({"image_size": 90}, "expected a height divisible by the patch's 8, got 90; crop or pad"),
        ({"image_size": (96, 4)}, "expected a width divisible by the patch's 8, got 4"),
        ({"image_size": "96"}, "image_size: expected 2 whole numbers, got '96'"),
        ({"patch_size": (3, 8)}, r"patch_size: expected 3 whole numbers, got \(3, 8\)"),
        ({"num_heads": 5}, "embed_dim: expected a multiple of num_heads=5, got 128"),
        ({"decoder_num_heads": 7}, "decoder_embed_dim: expected a multiple of decoder_num_heads=7, got 96"),
        ({"depth": -1}, "depth: expected a whole number from 1 to 1024, got -1"),
        ({"depth": 10**9}, "depth: expected a whole number"),
        ({"bands": 0}, "bands: expected a whole number"),
        ({"bands": 1.5}, "bands: expected a count, a sequence of names or a sensor card, got 1.5"),
        ({"bands": "B02"}, "bands: expected a count"),
        ({"bands": 3, "wavelengths": (0.5,)}, "wavelengths: expected 3 entries, one per band, got 1"),
        (
            {"bands": 3, "groups": ((0, 1, 3),)},
            r"groups: expected 3 band indices below 3 in each, got \(0, 1, 3\)",
        ),
        (
            {"position_embedding": "sincos"},
            "position_embedding: expected one of separable, flat, got 'sincos'",
        ),
        ({"spectral_targets": "mean"}, "spectral_targets: expected one of same, raw"),
        ({"attention_backend": "flash"}, "attention_backend: expected one of auto, xformers, sdpa"),
        ({"mlp_ratio": 0.0}, "mlp_ratio: expected a factor that leaves an MLP some width, got 0.0"),
        ({"drop_path": 1.0}, r"drop_path: expected a rate in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_values_say_what_was_expected(config, message):
    with pytest.raises(UserError, match=message):
        make_config(**{"name": "tiny", **config})
