# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import os

import pytest
import torch

import spectralgpt
from spectralgpt.errors import UserError


@pytest.fixture
def published(golden):
    return golden("pretrain_raw").weights


def fuse(state, name):
    """The published variant with one matrix for q, k and v."""
    fused = {key: tensor for key, tensor in state.items() if not any(f".attn.{p}." in key for p in "qkv")}
    for key in state:
        if ".attn.q." in key:
            parts = [state[key.replace(".q.", f".{p}.")] for p in "qkv"]
            fused[key.replace(".q.", f".{name}.")] = torch.cat(parts)
    return fused


def assert_same(model, published):
    for key, tensor in spectralgpt.reference_state_dict(model).items():
        assert torch.equal(tensor, published[key]), key


VARIANTS = {
    "plain": lambda state: state,
    "to_qkv": lambda state: fuse(state, "to_qkv"),
    "qkv": lambda state: fuse(state, "qkv"),
    "module.": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "nested": lambda state: {"model": state, "epoch": 3, "args": argparse.Namespace(lr=1e-4)},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("as_file", [False, True])
def test_every_published_form_loads_and_comes_back(variant, as_file, published, small_autoencoder, tmp_path):
    source = VARIANTS[variant](published)
    if as_file:
        torch.save(source, tmp_path / "SpectralGPT.pth")
        source = tmp_path / "SpectralGPT.pth"
    model = small_autoencoder()
    report = spectralgpt.load_reference_checkpoint(model, source)
    assert set(report.loaded) == set(published)
    assert str(report) == "loaded 79 tensors"
    assert_same(model, published)


def test_spatial_positions_of_another_size_are_resampled_and_reported(published, small_autoencoder):
    model, same_size = small_autoencoder(image_size=(48, 24)), small_autoencoder()
    report = spectralgpt.load_reference_checkpoint(model, published)
    spectralgpt.load_reference_checkpoint(same_size, published)
    assert report.resized == ("pos_embed_spatial", "decoder_pos_embed_spatial")
    assert "resized 2: pos_embed_spatial, decoder_pos_embed_spatial" in str(report)
    same_size.resize((48, 24))
    torch.testing.assert_close(model.encoder.positions.spatial, same_size.encoder.positions.spatial)
    torch.testing.assert_close(model.decoder.positions.spatial, same_size.decoder.positions.spatial)


def test_flat_positions_go_by_their_published_name(small_encoder):
    large, small = (
        small_encoder(position_embedding="flat", image_size=64),
        small_encoder(position_embedding="flat"),
    )
    state = spectralgpt.reference_state_dict(small)
    assert state["pos_embed"].shape == (1, 64, 48)
    report = spectralgpt.load_reference_checkpoint(large, state)
    assert report.resized == ("pos_embed",)
    small.resize(64)
    torch.testing.assert_close(large.positions.flat, small.positions.flat)


def test_an_encoder_leaves_the_decoder_unused(published, small_encoder):
    model = small_encoder()
    report = spectralgpt.load_reference_checkpoint(model, published)
    assert not report.unexpected
    assert "mask_token" in report.unused and "decoder_blocks.1.attn.v.bias" in report.unused
    assert len(report.loaded) + len(report.unused) == len(published)
    assert_same(model, published)


def test_nothing_is_dropped_silently(published, small_autoencoder):
    state = dict(published)
    del state["norm.bias"]
    state["head.weight"] = torch.zeros(10, 48)
    state["patch_embed.proj.weight"] = torch.zeros(48, 1, 2, 8, 8)
    model = small_autoencoder()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        spectralgpt.load_reference_checkpoint(model, state)
    mismatch = "patch_embed.proj.weight (expected (48, 1, 3, 8, 8), got (48, 1, 2, 8, 8))"
    for line in ("missing 1: norm.bias", "unexpected 1: head.weight", f"mismatched 1: {mismatch}"):
        assert line in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    report = spectralgpt.load_reference_checkpoint(model, state, strict=False)
    assert (report.missing, report.unexpected, report.mismatched) == (
        ("norm.bias",),
        ("head.weight",),
        (mismatch,),
    )
    assert torch.equal(model.encoder.norm.bias, before["encoder.norm.bias"])
    assert torch.equal(model.encoder.norm.weight, published["norm.weight"])


def test_another_band_count_is_no_silent_success(published, small_autoencoder):
    with pytest.raises(UserError, match=r"pos_embed_temporal \(expected \(1, 2, 48\), got \(1, 4, 48\)\)"):
        spectralgpt.load_reference_checkpoint(small_autoencoder(bands=6), published)


def test_export_is_a_copy(small_autoencoder):
    model = small_autoencoder()
    exported = spectralgpt.reference_state_dict(model)
    exported["norm.weight"].zero_()
    assert model.encoder.norm.weight.all()


def test_gradients_before_backward(small_autoencoder):
    with pytest.raises(UserError, match=r"expected a gradient for .*, got none; call backward\(\) first"):
        spectralgpt.reference_state_dict(small_autoencoder(), grads=True)


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_runs_nothing(legacy, published, small_autoencoder, tmp_path):
    path, canary = tmp_path / "evil.pth", tmp_path / "canary"
    torch.save({"model": published, "args": Hostile(canary)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"evil\.pth: expected a checkpoint of tensors only, got: (.*mkdir|no archive)"):
        spectralgpt.load_reference_checkpoint(small_autoencoder(), path)
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04" + bytes(100), b"\x80\x02]q\x00."])
def test_damaged_files(content, small_autoencoder, tmp_path):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.pth: expected a") as caught:
        spectralgpt.load_reference_checkpoint(small_autoencoder(), path)
    assert "\n" not in str(caught.value)


def test_other_wrong_sources(small_autoencoder, tmp_path):
    with pytest.raises(UserError, match="expected a checkpoint of tensors only, got no such file"):
        spectralgpt.load_reference_checkpoint(small_autoencoder(), tmp_path / "none.pth")
    with pytest.raises(UserError, match="expected tensors by name, got epoch"):
        spectralgpt.load_reference_checkpoint(small_autoencoder(), {"epoch": 3})
    with pytest.raises(UserError, match="expected tensors by name, got nothing"):
        spectralgpt.load_reference_checkpoint(small_autoencoder(), {})
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(UserError, match="expected a dictionary of tensors, got list"):
        spectralgpt.load_reference_checkpoint(small_autoencoder(), tmp_path / "list.pth")
