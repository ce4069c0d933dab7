# SPDX-License-Identifier: Apache-2.0
"""A folder with a scene and two models, as a user would point the page at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spectralgpt
from spectralgpt.data.bands import SENTINEL2_12, sensor_card
from tests.data.rasters import noise, write

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "decoder_embed_dim": 32, "decoder_depth": 1}


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("app")
    card = sensor_card("sentinel2").select(SENTINEL2_12)
    pixels = noise(12, 70, 90)
    pixels[:, 50:, 70:] = 0  # no data
    write(tmp_path / "data" / "scenes" / "one.tif", pixels, SENTINEL2_12, nodata=0)
    write(tmp_path / "outside.tif", pixels, SENTINEL2_12)
    torch.manual_seed(0)  # the fixture that seeds every test comes after those of the session
    for name, create in (("run/model", spectralgpt.create_autoencoder), ("encoder", spectralgpt.create_model)):
        model = create("tiny", image_size=32, bands=card, **SMALL)
        model.normalization = {"method": "percentile", "band_names": list(SENTINEL2_12)}
        model.save_pretrained(tmp_path / "data" / name)
    (tmp_path / "data" / "link.tif").symlink_to(tmp_path / "outside.tif")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def pixels(root):
    """The scene's values as float32."""
    values = noise(12, 70, 90).astype(np.float32)
    values[:, 50:, 70:] = 0
    return values
