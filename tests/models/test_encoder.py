# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import spectralgpt
from spectralgpt.errors import UserError
from spectralgpt.models.base import arrange_bands
from spectralgpt.models.config import make_config


def test_keeping_all_tokens_is_encoding_the_image(small_encoder):
    torch.manual_seed(0)
    model, image = small_encoder(), torch.rand(2, 12, 32, 32)
    order = torch.stack([torch.randperm(64), torch.randperm(64)])
    tokens = model(image)
    assert tokens.shape == (2, 64, 48)
    expected = tokens.gather(1, order[:, :, None].expand_as(tokens))  # attention does not depend on token order
    torch.testing.assert_close(model(image, order), expected, rtol=1e-4, atol=1e-5)


def test_hidden_pixels_do_not_matter(small_encoder):
    torch.manual_seed(0)
    model, image = small_encoder(), torch.rand(1, 12, 32, 32)
    ids = torch.tensor([[0, 5, 17]])  # rows 0-15 of the first two groups
    changed = image.clone()
    changed[:, :, 16:] = torch.nan
    assert torch.equal(model(image, ids), model(changed, ids))


def test_another_image_size_and_shape(small_encoder):
    model = small_encoder()
    image = torch.rand(1, 12, 48, 16)
    tokens = model(image)
    assert tokens.shape == (1, 4 * 6 * 2, 48)
    model.resize((48, 16))
    torch.testing.assert_close(model(image), tokens)
    assert model.config.height_width == (48, 16)
    assert model.positions.spatial.shape == (12, 48)


def test_flat_positions(small_encoder):
    model = small_encoder(position_embedding="flat")
    assert model.positions.flat.shape == (64, 48)
    assert model(torch.rand(1, 12, 40, 32)).shape == (1, 80, 48)


def test_drop_path_grows_along_the_depth():
    model = spectralgpt.create_model("tiny", drop_path=0.3)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_bands_are_arranged_by_group():
    card = SimpleNamespace(names=("a", "b", "c"), wavelengths=(0.5, 0.6, 0.7), groups=(("c", "a"), ("b", "b")))
    image = torch.rand(1, 3, 8, 8)
    arranged = arrange_bands(image, make_config("tiny", bands=card, patch_size=(2, 8, 8), image_size=8))
    assert torch.equal(arranged, image[:, [2, 0, 1, 1]])
    plain = torch.rand(1, 12, 8, 8)
    assert arrange_bands(plain, make_config("tiny", image_size=8)) is plain


def test_exports_with_aten_ops_alone_and_any_batch(small_encoder):
    torch.manual_seed(0)
    model = small_encoder(bands=10).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.rand(2, 10, 32, 32),), dynamic_shapes=({0: batch},))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.scaled_dot_product_attention.default" in targets
    assert not [target for target in targets if not target.startswith("aten.") and "getitem" not in target]
    image = torch.rand(5, 10, 32, 32)
    torch.testing.assert_close(program.module()(image), model(image))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 13, 32, 32), r"expected shape \(B, 12, H, W\) for the bands, got \(1, 13, 32, 32\)"),
        ((12, 32, 32), r"expected shape \(B, 12, H, W\) for the bands, got \(12, 32, 32\)"),
        ((1, 12, 30, 32), "expected a height divisible by the patch's 8, got 30; crop or pad the image"),
        ((1, 12, 32, 4), "expected a width divisible by the patch's 8, got 4"),
    ],
)
def test_wrong_images(shape, message, small_encoder):
    with pytest.raises(UserError, match=message):
        small_encoder()(torch.rand(shape))


def test_a_wrong_band_count_names_the_bands():
    model = spectralgpt.create_model("tiny", bands=["red", "nir", "swir"], image_size=16)
    with pytest.raises(UserError, match=r"for the bands \(red, nir, swir\), got"):
        model(torch.rand(1, 4, 16, 16))
