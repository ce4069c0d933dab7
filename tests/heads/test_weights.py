# SPDX-License-Identifier: Apache-2.0
"""The encoder of every kind of source into a task model: nothing lost, everything reported."""

from __future__ import annotations

import re

import pytest
import torch

import spectralgpt
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.errors import UserError
from spectralgpt.heads import load_encoder, weights
from spectralgpt.nn import resample_spatial, resample_spectral
from tests.golden import read
from tests.heads.small import autoencoder, classifier, segmenter

PUBLISHED = SENTINEL2.select(weights.PUBLISHED_BANDS)
TEN = SENTINEL2.select(["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"])


@pytest.fixture(scope="module")
def published():
    return read("pretrain_raw").weights


def accounted(report):
    """Every published name in a report."""
    entries = (*report.loaded, *report.resized, *report.unexpected, *report.mismatched, *report.unused)
    return {name for entry in entries for name in re.findall(r"[a-z_]\w*(?:\.\w+)*", entry.split(" (expected")[0])}


def test_published_bands_are_those_of_the_sensor_card():
    assert PUBLISHED.names == weights.PUBLISHED_BANDS
    assert PUBLISHED.wavelengths == weights.PUBLISHED_WAVELENGTHS


@pytest.mark.parametrize("bands", [12, PUBLISHED, SENTINEL2], ids=["count", "12 bands", "13 bands"])
def test_published_pretraining_keeps_its_positions(bands, published):
    model, whole = classifier(bands=bands), autoencoder()
    head = model.head.weight.clone()
    report = load_encoder(model, published)
    spectralgpt.load_reference_checkpoint(whole, published)
    for name, tensor in whole.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], tensor), name
    assert torch.equal(model.head.weight, head)
    assert accounted(report) == set(published)
    assert not (report.resized or report.missing or report.unexpected or report.mismatched)
    assert all(key.startswith(("decoder_", "mask_token")) for key in report.unused)


@pytest.mark.parametrize("as_folder", [False, True])
def test_flat_positions_are_the_sum_of_space_and_spectrum(as_folder, published, tmp_path):
    source = published
    if as_folder:
        whole = autoencoder()
        spectralgpt.load_reference_checkpoint(whole, published)
        whole.save_pretrained(tmp_path)
        source = tmp_path
    model = classifier(position_embedding="flat")
    report = load_encoder(model, source)
    expected = published["pos_embed_temporal"][0, :, None] + published["pos_embed_spatial"]
    torch.testing.assert_close(model.encoder.positions.flat, expected.flatten(0, 1))
    assert report.resized == ("pos_embed (pos_embed_temporal + pos_embed_spatial)",)
    if not as_folder:
        assert accounted(report) - {"pos_embed"} == set(published)
    direct = classifier(position_embedding="flat")
    assert "pos_embed" in str(spectralgpt.load_reference_checkpoint(direct, published, strict=False).resized)
    torch.testing.assert_close(direct.encoder.positions.flat, model.encoder.positions.flat)


@pytest.mark.parametrize("form", ["separable", "flat"])
def test_another_size_and_other_bands_are_resampled_and_reported(form, published):
    model = segmenter(image_size=(48, 24), bands=TEN, position_embedding=form)
    report = load_encoder(model, published)
    spectral = resample_spectral(
        published["pos_embed_temporal"][0],
        [sum(PUBLISHED.wavelengths[i : i + 3]) / 3 for i in (0, 3, 6, 9)],
        model.config.group_wavelengths,
    )
    spatial = resample_spatial(published["pos_embed_spatial"][0], (4, 4), (6, 3))
    if form == "separable":
        assert set(report.resized) == {"pos_embed_spatial", "pos_embed_temporal"}
        torch.testing.assert_close(model.encoder.positions.spectral, spectral)
        torch.testing.assert_close(model.encoder.positions.spatial, spatial)
    else:
        expected = (spectral[:, None] + spatial).flatten(0, 1)
        torch.testing.assert_close(model.encoder.positions.flat, expected, rtol=1e-4, atol=1e-6)
    assert accounted(report) - {"pos_embed"} == set(published)


def test_published_fine_tuning_gives_its_encoder():
    tuned = read("classify_flat_pos").weights
    model = segmenter(position_embedding="flat")
    report = load_encoder(model, tuned)
    assert report.unused == ("head.bias", "head.weight") and accounted(report) == set(tuned)
    assert torch.equal(model.encoder.positions.flat, tuned["pos_embed"][0])
    with pytest.raises(UserError, match="missing 2: pos_embed_spatial, pos_embed_temporal\nunexpected 1: pos_embed"):
        load_encoder(segmenter(), tuned)


@pytest.mark.parametrize("source", ["encoder", "autoencoder", "segmenter", "run"])
def test_folders(source, tmp_path):
    make = {"encoder": lambda **config: autoencoder(**config).encoder, "segmenter": segmenter}.get(source, autoencoder)
    saved = make(bands=PUBLISHED)
    saved.normalization = {"method": "minmax"}
    saved.save_pretrained(tmp_path / "model" if source == "run" else tmp_path)
    model = classifier(bands=PUBLISHED)
    report = load_encoder(model, tmp_path)
    encoder = getattr(saved, "encoder", saved)
    assert all(torch.equal(t, model.encoder.state_dict()[key]) for key, t in encoder.state_dict().items())
    assert model.normalization == {"method": "minmax"}
    names = set(spectralgpt.reference_state_dict(encoder))
    others = {key for key in saved.state_dict() if not key.startswith("encoder.")} if encoder is not saved else set()
    assert (set(report.loaded), set(report.unused)) == (names, others)


def test_a_folder_of_other_bands_and_size(tmp_path):
    saved = autoencoder(bands=PUBLISHED)
    saved.normalization = {"method": "minmax"}
    saved.save_pretrained(tmp_path)
    model = classifier(bands=TEN, image_size=48)
    report = load_encoder(model, tmp_path)
    assert set(report.resized) == {"pos_embed_spatial", "pos_embed_temporal"}
    saved.adapt_bands(TEN)
    saved.resize(48)
    image = torch.rand(1, 10, 48, 48)
    torch.testing.assert_close(model.encoder(image), saved.encoder(image))
    assert model.normalization is None  # it belonged to the other bands


@pytest.mark.parametrize(
    ("bands", "model_bands"),
    [(PUBLISHED, 6), (PUBLISHED, list("abcdefghijkl")), (list("abc"), list("cab")), (12, list("abc"))],
)
def test_bands_that_cannot_move_are_refused(bands, model_bands, tmp_path):
    autoencoder(bands=bands).save_pretrained(tmp_path)
    model = classifier(bands=model_bands)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"bands: expected those of the source \(.*\) or wavelengths of both, got"):
        load_encoder(model, tmp_path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_heads": 4}, "expected an encoder with num_heads 4, as the model's, got 3"),
        ({"depth": 3}, "expected an encoder with depth 3"),
        ({"embed_dim": 96}, "expected an encoder with embed_dim 96"),
        ({"patch_size": (3, 16, 16)}, r"expected an encoder with patch_size \(3, 16, 16\)"),
    ],
)
def test_folders_of_other_sizes(config, message, tmp_path):
    autoencoder().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        load_encoder(classifier(**config), tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth": 3}, "missing 16: blocks.2"),
        ({"embed_dim": 96}, r"mismatched .*pos_embed_spatial \(expected"),
        ({"patch_size": (3, 16, 16)}, r"mismatched 1: patch_embed.proj.weight \(expected"),
        ({"bands": 6}, r"bands: expected those of the source \(B01, .*, got 6 bands without names"),
    ],
)
def test_checkpoints_of_other_sizes(config, message, published):
    with pytest.raises(UserError, match=message):
        load_encoder(classifier(**config), published)


def test_a_bare_encoder_takes_weights_too(published):
    encoder, model = classifier().encoder, classifier()
    load_encoder(model, published)
    assert load_encoder(encoder, published) == load_encoder(model, published)
    assert all(torch.equal(t, model.encoder.state_dict()[key]) for key, t in encoder.state_dict().items())


def test_not_strict_copies_what_fits(published):
    partial = {key: tensor for key, tensor in published.items() if key != "norm.bias"} | {"extra": torch.zeros(1)}
    model = classifier()
    torch.nn.init.ones_(model.encoder.norm.bias)
    report = load_encoder(model, partial, strict=False)
    assert (report.missing, report.unexpected) == (("norm.bias",), ("extra",))
    assert model.encoder.norm.bias.eq(1).all()
    assert torch.equal(model.encoder.norm.weight, published["norm.weight"])


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none: expected a run folder, a saved model's folder or a \.pth file"):
        load_encoder(classifier(), tmp_path / "none")
    with pytest.raises(UserError, match=r"config\.json: expected a folder that save_pretrained wrote"):
        load_encoder(classifier(), tmp_path)


def test_a_published_head_is_dropped_again_where_loading_fails(published, caplog):
    layout = spectralgpt.reference_state_dict(segmenter(head="published", width=256))
    model = segmenter().eval()
    head, config = model.head, model.head_config
    broken = {key: tensor for key, tensor in layout.items() if key != "fc.0.bias"}
    with pytest.raises(UserError, match=r"missing 1: fc\.0\.bias"):
        spectralgpt.load_reference_checkpoint(model, broken)
    assert model.head is head and model.head_config is config and model.encoder.norm.weight.requires_grad
    spectralgpt.load_reference_checkpoint(model, layout)
    assert model.head_config.head == "published" and not model.head.training
    assert "head: pyramid replaced by the checkpoint's published one" in caplog.text
