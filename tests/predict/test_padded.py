# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from spectralgpt.data.scene import Scene
from spectralgpt.predict.layers import value_layer
from spectralgpt.predict.padded import PaddedScene
from spectralgpt.predict.scene import predict_scene
from tests.data.rasters import noise, write
from tests.predict.test_scene import BANDS, raw, read


@pytest.fixture
def pixels():
    pixels = noise(3, 21, 35)
    pixels[:, :3, 9:12] = 0  # no data
    return pixels


@pytest.fixture
def scene(tmp_path, pixels):
    return Scene.open(write(tmp_path / "scene.tif", pixels, BANDS), "sentinel2", BANDS)


@pytest.mark.parametrize("multiple", [1, 8, 50])
def test_every_window_is_that_of_the_mirrored_scene(scene, pixels, multiple):
    padded = PaddedScene(scene, multiple)
    height, width = padded.shape
    assert height % multiple == width % multiple == 0 and height - 21 < multiple and width - 35 < multiple
    whole = np.pad(pixels, ((0, 0), (0, height - 21), (0, width - 35)), "symmetric")
    for row, column, rows, columns in ((0, 0, height, width), (height - 5, 3, 5, 7), (2, width - 9, 4, 9)):
        values, valid = padded.read_raw(row, column, rows, columns)
        expected = whole[:, row : row + rows, column : column + columns]
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(np.ones(values.shape, bool) if valid is None else valid, expected != 0)


def test_a_value_per_cell(tmp_path, scene, pixels):
    """Means of cells, over overlapping windows: those of the mirrored scene, and none where a pixel is missing."""
    padded = PaddedScene(scene, 7)
    layer = value_layer(tmp_path / "out.tif", padded, BANDS, nodata=-1.0)
    assert layer.layout.shape == (21, 35)
    with pytest.raises(ValueError, match="whole cells"):
        predict_scene(torch.clone, [scene], [layer], raw, size=16, cell=8)
    cells = value_layer(tmp_path / "cells.tif", scene, BANDS, nodata=-1.0, cell=7)
    predict_scene(lambda x: torch.nn.functional.avg_pool2d(x, 7), [padded], [cells], raw, size=14, overlap=0.5, cell=7)
    expected = pixels.reshape(3, 3, 7, 5, 7).mean((2, 4))
    missing = (pixels == 0).reshape(3, 3, 7, 5, 7).any((0, 2, 4))
    assert missing.sum() == 1
    np.testing.assert_allclose(read(tmp_path / "cells.tif"), np.where(missing, -1, expected), rtol=1e-5)
