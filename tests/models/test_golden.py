# SPDX-License-Identifier: Apache-2.0
"""Published weights in, published numbers out (fp32; tolerances of the project's numerics rule)."""

from __future__ import annotations

import pytest
import torch

import spectralgpt
from spectralgpt import ops
from tests.golden import assert_published, drawn_input, drawn_weight, layout_of


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("pretrain_raw", {}),
        ("pretrain_norm_pix", {"normalize_targets": True, "spectral_targets": "raw"}),
    ],
)
def test_small_model_outputs_and_every_gradient(name, config, golden, small_autoencoder):
    reference = golden(name)
    model = small_autoencoder(**config)
    spectralgpt.load_reference_checkpoint(model, reference.weights)
    mask = ops.cube_mask_from_noise(reference.input["noise"], 0.9)
    out = model(reference.input["image"], mask)
    out.loss.backward()

    assert torch.equal(mask.ids_restore, reference.output["ids_restore"])
    assert torch.equal(mask.mask.float(), reference.output["mask"])
    assert_published(out.latent, reference.output["latent"])
    assert_published(out.prediction, reference.output["pred"])
    for ours, published in (
        ("loss", "loss"),
        ("token_loss", "token_loss"),
        ("spectral_loss", "spectral_loss"),
    ):
        assert_published(getattr(out, ours), reference.output[published][0])

    gradients = spectralgpt.reference_state_dict(model, grads=True)
    assert gradients.keys() == reference.grad.keys()
    norm = sum(g.square().sum() for g in reference.grad.values()).sqrt()
    for key, expected in reference.grad.items():
        bound = 1e-3 * expected.abs().max() + 1e-6 * norm
        assert (gradients[key] - expected).abs().max() <= bound, key


@pytest.fixture(scope="module", autouse=True)
def _forget_weights():
    """Both Base sizes share all weights but the spatial positions."""
    yield
    drawn_weight.cache_clear()


@pytest.mark.parametrize("image_size", [96, 128])
def test_base(image_size, golden):
    reference = golden(f"full_pretrain_base_{image_size}")
    weights = {key: drawn_weight(key, shape) for key, shape in layout_of(reference).items()}
    with torch.device("meta"):
        model = spectralgpt.create_autoencoder("base", image_size=image_size)
    model.to_empty(device="cpu")
    report = spectralgpt.load_reference_checkpoint(model, weights)
    assert len(report.loaded) == 271

    image = drawn_input(reference.metadata["image"])
    mask = ops.cube_mask_from_noise(drawn_input(reference.metadata["noise"]), float(reference.metadata["mask_ratio"]))
    with torch.no_grad():
        out = model(image, mask)
    assert torch.equal(mask.ids_restore, reference.output["ids_restore"])
    assert_published(out.latent, reference.output["latent"])
    ends = torch.cat([out.prediction[:, :8], out.prediction[:, -8:]], dim=1)
    assert_published(ends, reference.output["pred_first_and_last_8_tokens"])
    assert_published(out.prediction.mean(dim=-1), reference.output["pred_mean_per_token"])
    assert_published(out.loss, reference.output["loss"][0])


@pytest.mark.parametrize(("size", "count"), [("base", 98_496_960), ("large", 315_970_752), ("huge", 643_558_336)])
def test_parameter_counts(size, count):
    with torch.device("meta"):
        model = spectralgpt.create_autoencoder(size)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(("size", "count"), [("large", 463), ("huge", 591)])
def test_layouts_load_whole_and_come_back(size, count, layout):
    published = layout(size)
    with torch.device("meta"):
        model = spectralgpt.create_autoencoder(size)
        report = spectralgpt.load_reference_checkpoint(
            model, {key: torch.empty(shape) for key, shape in published.items()}
        )
    assert len(report.loaded) == count
    assert not (report.resized or report.missing or report.unexpected or report.mismatched or report.unused)
    exported = spectralgpt.reference_state_dict(model)
    assert {key: tuple(tensor.shape) for key, tensor in exported.items()} == published
