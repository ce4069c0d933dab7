# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

import spectralgpt
from spectralgpt import ops
from spectralgpt.app.explorer import Explorer
from spectralgpt.data.normalize import fit
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError

SCENE, MODEL = "scenes/one.tif", "run/model"


def test_it_lists_scenes_and_autoencoders_only(root):
    assert Explorer(root).listing() == {"scenes": [SCENE], "models": [MODEL]}


def test_a_window_is_what_the_model_makes_of_the_scene(root, pixels):
    """Against the model called by hand: same place, same normalisation, same mask, raw numbers everywhere."""
    window = Explorer(root).window(SCENE, MODEL, 20, 16, 0.75, 5)
    assert (window.row, window.column) == (4, 0)
    truth = pixels[:, 4:36, :32]
    np.testing.assert_array_equal(window.truth, truth)
    model = spectralgpt.from_pretrained(root / MODEL).eval()
    scene = Scene.open(root / SCENE, "sentinel2", model.config.band_names)
    normalization = fit(scene, "percentile")
    image = torch.from_numpy(normalization.apply(truth))[None]
    mask = ops.random_cube_mask(torch.tensor([4 * 90]), 64, 0.75, seed=5)
    with torch.no_grad():
        prediction = model(image, mask).prediction
    guess = normalization.invert(ops.unpatchify3d(prediction, (12, 32, 32))[0].numpy())
    hidden = ops.unpatchify3d(mask.mask[:, :, None].expand(1, 64, 192).contiguous(), (12, 32, 32))[0].numpy()
    np.testing.assert_array_equal(window.hidden, hidden)
    np.testing.assert_array_equal(window.rebuilt[~hidden], truth[~hidden])
    np.testing.assert_allclose(window.rebuilt[hidden], guess[hidden], rtol=1e-4, atol=0.05)
    error = (prediction - ops.patchify3d(image))[mask.mask].square().mean()
    assert window.psnr == pytest.approx(-10 * np.log10(error.item()), abs=1e-3)
    assert window.embedding.shape == (32, 32, 3) and window.embedding.std() > 0
    assert (window.embedding[:8, :8] == window.embedding[0, 0]).all(), "one colour per token"


def test_windows_stay_inside_and_know_no_data(root):
    window = Explorer(root).window(SCENE, MODEL, 69, 89, 0.5, 0)
    assert (window.row, window.column) == (38, 58)
    assert np.isfinite(window.psnr) and np.isfinite(window.rebuilt).all()


def test_a_quicklook_shows_the_bands_asked_for(root, pixels):
    shown, step = Explorer(root).quicklook(SCENE, MODEL, ["B02", "B04", "B02"])
    assert step == 1 and shown.shape == (70, 90, 3) and shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[..., 0], shown[..., 2])
    assert (shown[..., 0] != shown[..., 1]).any()
    assert not shown[50:, 70:].any(), "no data is black"
    order = pixels[1, :50, :70].ravel().argsort()  # B02 is the second band
    assert (np.diff(shown[:50, :70, 0].ravel()[order].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    "path", ["../outside.tif", "/etc/passwd", "scenes/../../outside.tif", "link.tif", "%2e%2e/outside.tif"]
)
def test_nothing_outside_the_folder_is_opened(root, path):
    with pytest.raises(UserError, match="below this folder"):
        Explorer(root).describe(path, MODEL)
    with pytest.raises(UserError, match="below this folder"):
        Explorer(root).describe(SCENE, path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SCENE, "encoder", 0, 0, 0.9, 0), "expected an autoencoder, got a model of kind encoder"),
        ((SCENE, MODEL, 0, 0, 1.5, 0), "share between 0 and 1"),
        (("none.tif", MODEL, 0, 0, 0.9, 0), "no such file"),
    ],
)
def test_mistakes_are_told(root, arguments, message):
    with pytest.raises(UserError, match=message):
        Explorer(root).window(*arguments)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match="expected a folder"):
        Explorer(tmp_path / "none")
