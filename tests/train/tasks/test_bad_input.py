# SPDX-License-Identifier: Apache-2.0
"""Labels, weights and recipes that do not fit each other: one line before the first step, and no run left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spectralgpt
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.errors import UserError
from spectralgpt.train.command import run_training
from spectralgpt.train.plan_command import run_plan
from tests.data.rasters import write
from tests.train.tasks import labelled


@pytest.fixture(scope="module")
def eurosat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled.eurosat(tmp_path_factory.mktemp("eurosat"), count=2, held_out=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that saw fixed statistics."""
    folder = tmp_path_factory.mktemp("weights")
    model = spectralgpt.create_model("tiny", **labelled.TINY, image_size=16, bands=SENTINEL2.select(SENTINEL2_12))
    model.normalization = {"method": "none", "band_names": list(SENTINEL2_12), "offset": None, "scale": None}
    model.save_pretrained(folder)
    return folder


def refused(words: str, folder: Path, *what: Any, **changes: Any) -> None:
    with pytest.raises(UserError, match=words) as told:
        run_training({"config": str(labelled.recipe(folder, *what, **changes))})
    assert "\n" not in str(told.value)
    assert not (folder / "runs").exists(), "no run is left behind"


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("single_label", {"data": {"dataset": None}}, r"data\.dataset: expected a data set with labels"),
        ("segmentation", {}, "expected segmentation labels, got single_label from EuroSAT"),
        ("single_label", {"head": {"head": "pyramid"}}, "head: expected one of linear, mlp, published, got 'pyramid'"),
        ("single_label", {"finetune": {"class_weights": [1.0]}}, r"class_weights: expected one for each of 10 classes"),
        ("single_label", {"finetune": {"class_weights": [0.0]}}, r"class_weights: expected numbers above 0"),
        ("single_label", {"finetune": {"mixup": -1.0}}, "mix: expected numbers from 0"),
        ("segmentation", {"finetune": {"cutmix": 1.0}}, "expected a task with labels of images, got segmentation"),
        ("pretrain", {"model": {"weights": "x"}}, r"model\.weights: expected a task with labels beside it"),
        ("single_label", {"optim": {"layer_decay": 0.0}}, r"optim\.layer_decay: expected a factor above 0"),
        ("single_label", {"stage": {"schedule": "exponential"}}, r"stages\.0\.min_lr: expected a rate above 0"),
        ("single_label", {"finetune": {"trian": "head"}}, r"finetune\.trian: unknown key; did you mean finetune\."),
        ("single_label", {"model": {"weights": "nowhere"}}, "nowhere: expected .* got no such file"),
    ],
)  # fmt: skip
def test_recipes_that_do_not_fit(task: str, changes: dict[str, Any], words: str, eurosat: Path, tmp_path: Path) -> None:
    refused(words, tmp_path, task, eurosat, "eurosat", ["partial=true"], **changes)


def test_weights_of_another_size_or_normalisation(eurosat: Path, weights: Path, tmp_path: Path) -> None:
    what = ("single_label", eurosat, "eurosat", ["partial=true"])
    model = {"weights": str(weights)}
    refused(r"model\.depth: expected 2 as in the weights .*, got 3; leave it out", tmp_path, *what,
            model={**model, "depth": 3})  # fmt: skip
    refused(r"data\.normalization: expected none as for the weights \(auto takes it\), got minmax; --finetune\.other_",
            tmp_path, *what, model=model, data={"normalization": "minmax"})  # fmt: skip
    allowed = {
        "data": {"normalization": "minmax"},
        "finetune": {"other_normalization": True},
        "stage": {"steps": 1, "warmup_steps": 1},
    }
    path = labelled.recipe(tmp_path, *what, model=model, validate_every=0, **allowed)
    assert run_training({"config": str(path)}) == 0


def test_other_bands_move_by_wavelength_with_a_report_or_are_refused(
    eurosat: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = ("single_label", eurosat, "eurosat", ["partial=true"])
    bands = {
        "data": {"bands": ["B04", "B03", "B02", "B08", "B11", "B12"]},
        "validate_every": 0,
        "stage": {"steps": 1, "warmup_steps": 1},
    }
    path = labelled.recipe(tmp_path, *what, model={"weights": str(weights)}, **bands)
    assert run_training({"config": str(path)}) == 0
    shown = capsys.readouterr().out
    assert "1 resized (pos_embed_temporal)" in shown
    assert "bands       B04 B03 B02 B08 B11 B12: moved by wavelength from B01 B02 B03" in shown
    unnamed = spectralgpt.create_model("tiny", **labelled.TINY, image_size=16, bands=9)
    unnamed.save_pretrained(tmp_path / "unnamed")
    (tmp_path / "again").mkdir()
    refused("bands: expected those of the source .* or wavelengths of both", tmp_path / "again", *what,
            model={"weights": str(tmp_path / "unnamed")}, **bands)  # fmt: skip


def test_splits_without_use(tmp_path: Path) -> None:
    one = labelled.eurosat(tmp_path / "one", count=2, held_out=1, classes=("River",))
    refused("train of .*: expected at least two classes to tell apart, got only 'River'", tmp_path,
            "single_label", one, "eurosat", ["partial=true"])  # fmt: skip
    still = labelled.cities(tmp_path / "still", names=("rennes",), changed=0)
    labelled.cities(still, names=("paris",))
    refused("val of .*: expected changed pixels to score by, found none", tmp_path,
            "change", still, "oscd", labelled.CITIES)  # fmt: skip


def test_masks_that_do_not_fit_their_images(tmp_path: Path) -> None:
    fields = labelled.fields(tmp_path / "fields", count=2)
    write(fields / "train_0_mask.tif", np.zeros((1, 8, 8), np.uint8))
    refused(r"train_0_mask\.tif: expected labels of 32 x 32 pixels as the image, got \(8, 8\)", tmp_path,
            "segmentation", fields, "folder", labelled.FIELDS)  # fmt: skip
    write(fields / "train_0_mask.tif", np.full((1, 32, 32), 7, np.uint8))
    refused(r"train_0_mask\.tif: .*7", tmp_path, "segmentation", fields, "folder", labelled.FIELDS)
    write(fields / "train_0_mask.tif", np.zeros((1, 32, 32), np.uint8), crs="EPSG:32631")
    refused(r"train_0_mask\.tif: .*EPSG:32631", tmp_path, "segmentation", fields, "folder", labelled.FIELDS)


def test_other_classes_on_resume_are_told(eurosat: Path, tmp_path: Path) -> None:
    path = labelled.recipe(
        tmp_path, "single_label", eurosat, "eurosat", ["partial=true"], stage={"steps": 1, "warmup_steps": 1}
    )
    assert run_training({"config": str(path)}) == 0
    with pytest.raises(UserError, match="--resume: expected the model the run began with, got other values of task"):
        run_training({"resume": str(tmp_path / "runs/run"), "task": "multi_label", "allow-config-change": ""})


def test_a_plan_is_of_pretraining(eurosat: Path, tmp_path: Path) -> None:
    path = labelled.recipe(tmp_path, "single_label", eurosat, "eurosat", [])
    options = {"config": str(path), "memory": "24GB", "gpu": "h100", "measure": False, "model": None}
    with pytest.raises(UserError, match=r"of pretraining, got single_label: .*; train without a plan: passes"):
        run_plan({**dict.fromkeys(("image_size", "mask_ratio", "epochs", "images", "bands", "precision")), **options})
