# SPDX-License-Identifier: Apache-2.0
"""The command on real files: scores of every image and every pixel, and one clear line for what does not fit."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn import metrics

import spectralgpt
from spectralgpt import cli
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.datasets.folder import Folder
from spectralgpt.predict.array import predict_array
from tests.data.datasets.archives import label_tif, oscd_city
from tests.evaluate.settings import BANDS, TINY, classifier, coloured, evaluate, saved


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return coloured(tmp_path_factory.mktemp("archive"), count=21)


def single(archive):
    return ["--data.dataset", "folder", "--data.root", str(archive), "--data.options", "[table=single.csv]"]


def test_labels_of_images(archive, tmp_path, capsys):
    model = classifier(tmp_path / "model")
    results = evaluate("--model", str(model), *single(archive), "--batch-size", "4", "--out", str(tmp_path / "out"))
    data = Folder(archive, "test", BANDS, table="single.csv")
    assert results["images"] == len(data) == 14
    matrix = np.array(results["confusion"])
    assert matrix.sum() == 14 and matrix.sum(1).tolist() == np.bincount(data.labels(), minlength=3).tolist()
    assert results["scores"]["accuracy"] == pytest.approx(np.trace(matrix) / 14)
    low, high = results["intervals"]["accuracy"]
    assert low < results["scores"]["accuracy"] < high
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.json", "report.html", "confusion.png", "worst.png",
    }  # fmt: skip
    errors = [row["error"] for row in results["worst"]]
    assert errors == sorted(errors, reverse=True) and len(errors) == 12
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2 and "image_07.tif" in page
    assert "accuracy" in capsys.readouterr().out


def test_any_batch_size_and_a_second_run_give_the_same_results(archive, tmp_path):
    model = classifier(tmp_path / "model")
    runs = [
        evaluate("--model", str(model), *single(archive), "--batch-size", size, "--out", str(tmp_path / "out"))
        for size in ("1", "5", "5")
    ]
    assert runs[1] == runs[2]
    assert runs[0]["confusion"] == runs[1]["confusion"] and runs[0]["intervals"] == runs[1]["intervals"]


def test_several_labels(archive, tmp_path):
    model = classifier(tmp_path / "model", "multi_label")
    options = [*single(archive)[:-1], "[table=several.csv]"]
    results = evaluate("--model", str(model), *options, "--out", str(tmp_path / "out"))
    assert results["scores"]["count"] == 14 and results["confusion"] is None
    low, high = results["intervals"]["macro_map"]
    assert low <= results["scores"]["macro_map"] <= high
    assert not (tmp_path / "out" / "confusion.png").exists()


def test_maps_are_scored_to_the_last_pixel(tmp_path):
    """Images of 37 x 29 pixels, windows of 16: every labelled pixel counts, with the values that blending gives."""
    archive = coloured(tmp_path / "data", count=12, size=(37, 29))
    model = spectralgpt.create_segmenter("tiny", 3, classes=("0", "1", "2"), bands=SENTINEL2.select(BANDS), **TINY)
    folder = saved(model, tmp_path / "model", "fixed")
    options = ["--data.dataset", "folder", "--data.root", str(archive)]
    options += ["--data.options", "['images=images/*.tif', 'masks=masks/*.tif']", "--split", "all"]
    results = evaluate("--model", str(folder), *options, "--batch-size", "3", "--out", str(tmp_path / "out"))
    assert results["scores"]["count"] == 12 * 37 * 29
    data = Folder(archive, "all", BANDS, images="images/*.tif", masks="masks/*.tif")
    truth, guess = [], []
    for index in range(len(data)):
        record = data.read(index)
        image = torch.from_numpy((record.pixels.astype(np.float32) - 1000) * np.float32(0.001))
        guess.append(predict_array(model.probabilities, image, size=16, batch_size=3).argmax(0).numpy().ravel())
        truth.append(record.mask.ravel())
    iou = metrics.jaccard_score(np.concatenate(truth), np.concatenate(guess), average=None, zero_division=0)
    assert results["scores"]["per_class"]["iou"] == pytest.approx(iou)
    assert results["scores"]["miou"] == pytest.approx(iou.mean())


def oscd(root, changed=True):
    for name in ("brasilia", "chongqing"):
        oscd_city(root / "images", name, shapes=((40, 50), (40, 50)))
        codes = np.ones((40, 50), int)
        codes[5:9, 40:50] = 2 if changed else 1
        label_tif(root / "test_labels" / name / "cm" / f"{name}-cm.tif", codes)
    return root


@pytest.fixture
def detector(tmp_path):
    model = spectralgpt.create_change_detector(
        "tiny", classes=("no change", "change"), bands=SENTINEL2.select(BANDS), **TINY
    )
    return saved(model, tmp_path / "detector", "minmax")


def test_change_over_whole_cities(tmp_path, detector):
    root = oscd(tmp_path / "oscd")
    results = evaluate(
        "--model", str(detector), "--data.dataset", "oscd", "--data.root", str(root),
        "--data.options", "[partial=true]",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert results["scores"]["count"] == 2 * 40 * 50
    assert results["scores"]["per_class"]["support"] == [2 * (2000 - 40), 2 * 40]
    assert results["intervals"] == {} and "2 images are too few" in results["interval note"]


def refused(capsys, *arguments):
    assert cli.main(["evaluate", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    return line


def test_a_split_without_changed_pixels(tmp_path, detector, capsys):
    root = oscd(tmp_path / "oscd", changed=False)
    line = refused(
        capsys, "--model", str(detector), "--data.root", str(root), "--data.options", "[partial=true]",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert "expected changed pixels in the split" in line and not (tmp_path / "out").exists()


def test_what_does_not_fit_is_named(archive, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    model = classifier(tmp_path / "model")
    says = {
        "2 classes": (classifier(tmp_path / "two", classes=("c0", "c1")), [], "expected the model's 2 classes, got 3"),
        "order": (classifier(tmp_path / "order", classes=("c1", "c0", "c2")), [], "class 0 to be 'c1' .* got 'c0'"),
        "task": (classifier(tmp_path / "task", "multi_label"), [], "multi_label labels .* got single_label"),
        "bands": (model, ["--data.bands", "[B02, B03, B8A]"], "expected the model's, B02 B03 B04"),
        "rule": (model, ["--data.normalization", "minmax"], "expected auto, as the model keeps its own"),
        "split": (model, ["--split", "val"], "found none"),
        "option": (model, ["--steps", "3"], "--steps: unknown option"),
        "key": (model, ["--data.rot", "x"], "data.rot: unknown key; did you mean data.root"),
        "number": (model, ["--batch-size", "0"], "batch_size: expected at least 1, got 0"),
        "folder": (archive, [], "expected a run or a model's folder"),
    }
    for case, (folder, extra, text) in says.items():
        line = refused(capsys, "--model", str(folder), *single(archive), *extra, *out)
        assert re.search(text, line), (case, line)
    encoder = spectralgpt.create_model("tiny", bands=SENTINEL2.select(BANDS), **TINY)
    encoder.save_pretrained(tmp_path / "encoder")
    assert "--probe knn" in refused(capsys, "--model", str(tmp_path / "encoder"), *single(archive), *out)
    assert "--data.root" in refused(capsys, "--model", str(model), *out)
    assert not (tmp_path / "out").exists()


def test_bands_that_the_images_lack(tmp_path, capsys):
    archive = coloured(tmp_path / "data")
    model = spectralgpt.create_classifier(
        "tiny",
        3,
        task="single_label",
        classes=("c0", "c1", "c2"),
        bands=SENTINEL2.select(("B02", "B03", "B12")),
        **TINY,
    )
    model.save_pretrained(tmp_path / "model")
    line = refused(capsys, "--model", str(tmp_path / "model"), *single(archive), "--out", str(tmp_path / "out"))
    assert "B12" in line


def test_a_bad_image_ends_the_evaluation_and_is_named(tmp_path, capsys):
    archive = coloured(tmp_path / "data")
    bad = archive / "images" / "image_07.tif"
    bad.write_bytes(bad.read_bytes()[:200])
    model = classifier(tmp_path / "model")
    line = refused(capsys, "--model", str(model), *single(archive), "--out", str(tmp_path / "out"))
    assert "image_07.tif" in line and not (tmp_path / "out").exists()


def test_the_data_of_the_run_that_made_the_model(tmp_path, archive):
    """A run's folder is enough: its recipe says where the images are."""
    run = tmp_path / "runs" / "mine"
    classifier(run / "model")
    (run / "config.yaml").write_text(
        f"data: {{root: nowhere, dataset: folder, options: ['table=single.csv'], normalization: gone.json}}\n"
        f"stages:\n- {{data: {{root: {archive}}}}}\n"
    )
    assert cli.main(["evaluate", "--model", str(run), "--worst", "0", "--bootstrap", "0"]) == 0
    assert {path.name for path in (run / "evaluation" / "test").iterdir()} == {
        "results.json", "report.html", "confusion.png",
    }  # fmt: skip


def test_a_run_trained_on_windows_is_evaluated_on_whole_images(tmp_path):
    run = tmp_path / "run"
    model = spectralgpt.create_change_detector(
        "tiny", classes=("no change", "change"), bands=SENTINEL2.select(BANDS), **TINY
    )
    saved(model, run / "model", "minmax")
    (run / "config.yaml").write_text(
        f"data: {{root: {oscd(tmp_path / 'oscd')}, dataset: oscd, options: [window=16, stride=8, partial=true]}}\n"
    )
    assert evaluate("--model", str(run), "--out", str(tmp_path / "out"))["scores"]["count"] == 2 * 40 * 50
