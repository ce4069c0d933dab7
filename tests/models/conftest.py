# SPDX-License-Identifier: Apache-2.0
"""Numbers of the published model (tests/assets/golden) and small models that the tests share."""

from __future__ import annotations

import json

import pytest

import spectralgpt
from tests.golden import FOLDER, read

SMALL = {
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "decoder_embed_dim": 32,
    "decoder_depth": 2,
    "decoder_num_heads": 4,
}


@pytest.fixture(scope="session")
def golden():
    """Reads a golden file."""
    return read


@pytest.fixture(scope="session")
def layout():
    """Names and shapes of a published checkpoint."""

    def read_layout(size):
        entries = json.loads((FOLDER / f"layout_pretrain_{size}_96.json").read_text(encoding="utf-8"))
        return {key: tuple(shape) for key, shape in entries}

    return read_layout


@pytest.fixture
def small_autoencoder():
    """The architecture of the two small golden files."""
    return lambda **config: spectralgpt.create_autoencoder("tiny", **{"image_size": 32, **SMALL, **config})


@pytest.fixture
def small_encoder():
    """Its encoder alone."""
    return lambda **config: spectralgpt.create_model("tiny", **{"image_size": 32, **SMALL, **config})
