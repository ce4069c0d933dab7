# SPDX-License-Identifier: Apache-2.0
"""Exported files against the model, run by their own runtimes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import spectralgpt
from spectralgpt import cli
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.errors import UserError
from spectralgpt.models.base import SpectralModel
from spectralgpt.predict import export
from spectralgpt.predict.export import export_model

onnx = pytest.importorskip("onnx", reason="needs the extra export")
SMALL = {"image_size": 32, "bands": SENTINEL2.select(SENTINEL2_12), "embed_dim": 32, "depth": 4, "num_heads": 2}

MODELS = {
    "encoder": lambda: spectralgpt.create_model("tiny", **FLAT),
    "classifier": lambda: spectralgpt.create_classifier(
        "tiny", 3, head="mlp", spectral_pool="concat", classes=("a", "b", "c"), **FLAT
    ),
    "segmenter": lambda: spectralgpt.create_segmenter("tiny", 3, **SMALL),
    "linear": lambda: spectralgpt.create_segmenter("tiny", 3, head="linear", **FLAT),
    "published": lambda: spectralgpt.create_segmenter("tiny", 3, head="published", width=16, **FLAT),
    "change": lambda: spectralgpt.create_change_detector("tiny", **SMALL),
}
FLAT = {**SMALL, "depth": 1}
FAST = (("classifier", "pt2"),)  # the metadata test below exports to ONNX
ALL = [
    pytest.param(name, kind, marks=() if (name, kind) in FAST else pytest.mark.acceptance)
    for name in MODELS
    for kind in ("onnx", "pt2")
]


def made(name: str) -> SpectralModel:
    """A model whose last layer is not near zero."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and float(parameter.detach().abs().max()) < 0.1:
            torch.nn.init.normal_(parameter.data, std=0.2)
    model.normalization = {"method": "minmax"}
    return model


@pytest.mark.parametrize(("name", "file_format"), ALL)
def test_the_file_agrees_with_the_model(tmp_path: Path, name: str, file_format: str) -> None:
    model = made(name)
    report = export_model(model, tmp_path / f"model.{file_format}", file_format)
    assert report.is_size_open
    run = export._open(report.path, file_format)
    for batch, height, width in ((5, 40, 24), (1, 32, 32)):
        images = [torch.rand(batch, 12, height, width) for _ in report.inputs]
        expected = model(*images).detach()
        assert (run(images) - expected).abs().max() <= 1e-4 * max(1, float(expected.abs().max()))
    assert max(report.differences.values()) < 1e-4 and len(report.differences) == 3
    assert [path.name for path in tmp_path.iterdir()] == [report.path.name]


def test_the_metadata_tell_bands_normalisation_and_classes(tmp_path: Path) -> None:
    model = made("classifier")
    path = export_model(model, tmp_path / "a.onnx", "onnx", image_size=64).path
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    told = {entry.key: entry.value for entry in proto.metadata_props}
    assert told["bands"].split() == list(SENTINEL2_12) and told["wavelengths_um"].startswith("0.4427 ")
    assert json.loads(told["classes"]) == ["a", "b", "c"]
    assert json.loads(told["normalization"]) == {"method": "minmax"}
    record = json.loads(told["spectralgpt"])
    assert record["kind"] == "classifier" and record["output"] == "logits" and record["inputs"] == ["image"]
    assert [entry.name for entry in proto.graph.input] == ["image"]
    path = export_model(made("encoder"), tmp_path / "a.pt2", "pt2").path
    extra = {"spectralgpt.json": ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra["spectralgpt.json"])["model"]["band_names"] == list(SENTINEL2_12)


def test_a_file_that_disagrees_never_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_open", lambda *_: lambda images: torch.zeros(images[0].shape[0], 64, 32))
    with pytest.raises(UserError, match=r"encoder: expected the file to agree with the model within .*nothing was"):
        export_model(made("encoder"), tmp_path / "a.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_weights_beside_the_file_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ONNX demands beyond 2 GB; here two files take the place of such a pair."""

    def write(_: object, __: object, path: Path, ___: bool) -> None:
        path.write_bytes(bytes(1_000_000))
        path.with_name(f"{path.name}.data").write_bytes(bytes(2_000_000))

    monkeypatch.setattr(export, "_write_onnx", write)
    monkeypatch.setattr(export, "_open", lambda *_: made("encoder"))
    monkeypatch.setattr(export, "_compare", lambda *_: {})
    made("encoder").save_pretrained(tmp_path / "model")
    assert cli.main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "a.onnx")]) == 0
    told = capsys.readouterr().out
    assert "a.onnx: encoder, 3.0 MB" in told and f"weights  {tmp_path / 'a.onnx.data'}: keep it beside" in told


def test_the_command_and_its_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spectralgpt.create_autoencoder("tiny", **FLAT).save_pretrained(tmp_path / "run" / "model")
    run, out = str(tmp_path / "run"), str(tmp_path / "new" / "a.pt2")
    assert cli.main(["export", run, "--format", "pt2", "--out", out]) == 0
    said = capsys.readouterr().out
    assert "encoder" in said and "image (B, 12, H, W)" in said and said.count("max |file - model|") == 3
    for arguments, message in (
        ([str(tmp_path), "--out", out], "expected a run or a model's folder"),
        ([run, "--format", "tflite", "--out", out], "invalid choice: 'tflite'"),
        ([run, "--format", "pt2", "--out", "/proc/nothing/a.pt2"], "expected a place that can be written"),
        ([run, "--format", "pt2", "--out", out, "--image-size", "30"], "divisible by the patch's 8, got 30"),
    ):
        assert cli.main(["export", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    assert cli.main(["export", run, "--format", "pt2", "--out", out]) == 2
    assert re.search(r"a\.pt2: expected [\d.]+ MB free for the file, got 1 MB$", capsys.readouterr().err.strip())
    monkeypatch.undo()
    with pytest.raises(UserError, match="format: expected one of onnx, pt2, got 'tf'"):
        export_model(made("encoder"), out, "tf")
    monkey = pytest.MonkeyPatch()
    monkey.setitem(__import__("sys").modules, "onnxscript", None)
    with monkey.context(), pytest.raises(UserError, match=r"onnxscript: expected for ONNX, not installed; pip install"):
        export_model(made("encoder"), tmp_path / "a.onnx", "onnx")
    monkey.undo()
