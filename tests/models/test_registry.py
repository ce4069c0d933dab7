# SPDX-License-Identifier: Apache-2.0
"""Saving and loading whole models (`registry.from_pretrained` over `checkpoint`)."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import spectralgpt
from spectralgpt import ops
from spectralgpt.errors import UserError
from spectralgpt.models import Autoencoder, Encoder, checkpoint

CARD = SimpleNamespace(
    names=tuple(f"B{i:02d}" for i in range(1, 13)),
    wavelengths=(0.44, 0.49, 0.56, 0.66, 0.70, 0.74, 0.78, 0.84, 0.86, 0.94, 1.6, 2.2),
)


def test_sizes_by_name():
    widths = {}
    for name in ("tiny", "small", "base", "large", "huge"):
        with torch.device("meta"):
            config = spectralgpt.create_model(name).config
        widths[name] = (config.embed_dim, config.depth, config.num_heads)
    assert widths == {
        "tiny": (128, 4, 4),
        "small": (384, 12, 6),
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
        "huge": (1280, 32, 16),
    }


def test_autoencoder_round_trip(small_autoencoder, tmp_path):
    torch.manual_seed(0)
    model = small_autoencoder(bands=CARD, normalize_targets=True)
    model.normalization = {"method": "percentile", "offset": [0.0] * 12}
    model.save_pretrained(tmp_path / "deep" / "model")
    loaded = spectralgpt.from_pretrained(tmp_path / "deep" / "model")
    assert isinstance(loaded, Autoencoder)
    assert loaded.config == loaded.encoder.config == model.config
    assert loaded.normalization == model.normalization
    image, mask = torch.rand(1, 12, 32, 32), ops.random_cube_mask(torch.arange(1), 64, 0.5, seed=0)
    assert torch.equal(loaded(image, mask).loss, model(image, mask).loss)
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())


def test_the_folder_holds_two_readable_files(small_encoder, tmp_path):
    small_encoder(bands=CARD).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1, "who may read one may read all"
    record = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (record["library"], record["version"], record["kind"]) == (
        "spectralgpt",
        spectralgpt.__version__,
        "encoder",
    )
    assert record["model"]["band_names"] == list(CARD.names)
    assert record["model"]["groups"][1] == [3, 4, 5]
    assert record["normalization"] is None
    assert isinstance(spectralgpt.from_pretrained(tmp_path), Encoder)


def test_loaded_weights_are_not_the_file(small_encoder, tmp_path):
    model = small_encoder()
    model.save_pretrained(tmp_path)
    loaded = spectralgpt.from_pretrained(tmp_path)
    with torch.no_grad():
        loaded.norm.weight.zero_()
    assert spectralgpt.from_pretrained(tmp_path).norm.weight.all()
    loaded.save_pretrained(tmp_path)  # over the file it came from
    assert not spectralgpt.from_pretrained(tmp_path).norm.weight.any()


def test_other_bands_and_size_while_loading(small_encoder, tmp_path):
    model = small_encoder(bands=CARD)
    model.save_pretrained(tmp_path)
    bands = SimpleNamespace(names=CARD.names[3:9], wavelengths=CARD.wavelengths[3:9])
    loaded = spectralgpt.from_pretrained(tmp_path, bands=bands, image_size=(48, 32))
    torch.testing.assert_close(loaded.positions.spectral, model.positions.spectral[1:3])
    assert loaded(torch.rand(1, 6, 48, 32)).shape == (1, 2 * 6 * 4, 48)


def test_a_failed_save_leaves_the_old_model_whole(small_encoder, tmp_path, monkeypatch):
    model = small_encoder()
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(UserError, match="expected a folder that can be written, got: No space left on device"):
        small_encoder().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_folder_that_cannot_be_written(small_encoder, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file: expected a folder that can be written"):
        small_encoder().save_pretrained(tmp_path / "file")


def test_missing_files(small_encoder, tmp_path):
    with pytest.raises(UserError, match=r"nowhere/config\.json: expected a folder that save_pretrained wrote"):
        spectralgpt.from_pretrained(tmp_path / "nowhere")
    small_encoder().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: expected a folder"):
        spectralgpt.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", lambda raw: raw[:-20], r"config\.json: expected a model's configuration"),
        ("config.json", lambda raw: b"[]", r"config\.json: expected a model's configuration"),
        ("config.json", lambda raw: b"\xff\xfe", r"config\.json: expected a model's configuration"),
        ("config.json", lambda raw: b"[" * 100_000, r"config\.json: expected a model's configuration"),
        (
            "config.json",
            lambda raw: raw.replace(b'"depth": 2', b'"depth": 2000000'),
            "depth: expected a whole number",
        ),
        ("config.json", lambda raw: raw.replace(b'"depth"', b'"dept"'), "got 'dept'; did you mean depth"),
        (
            "config.json",
            lambda raw: raw.replace(b'"encoder"', b'"robot"'),
            "expected kind .*encoder, autoencoder.*, got 'robot'",
        ),
        (
            "config.json",
            lambda raw: raw.replace(b'"depth": 2', b'"depth": 3'),
            r"model\.safetensors: expected the weights",
        ),
        (
            "config.json",
            lambda raw: raw.replace(b'"embed_dim": 48', b'"embed_dim": 960000'),
            "expected the weights",
        ),
        (
            "model.safetensors",
            lambda raw: raw[:-20],
            r"model\.safetensors: expected a whole safetensors file",
        ),
        ("model.safetensors", lambda raw: b"", r"model\.safetensors: expected a whole safetensors file"),
        (
            "model.safetensors",
            lambda raw: b"\xff" * 100,
            r"model\.safetensors: expected a whole safetensors file",
        ),
    ],
)
def test_damaged_files_are_named(name, damage, message, small_encoder, tmp_path):
    small_encoder().save_pretrained(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        spectralgpt.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
