# SPDX-License-Identifier: Apache-2.0
"""Every recipe of a task, as it lies in configs/, with `tiny` on small archives: `pytest -m acceptance`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import spectralgpt
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.datasets.segmunich import CODES, FILE_ORDER
from spectralgpt.train import recipe
from spectralgpt.train.command import run_training
from tests.data.rasters import noise, write
from tests.train.tasks import labelled

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
MOST_SECONDS = 120


def segmunich(root: Path) -> Path:
    """Without a val.txt, as published: the left half is striped forest, the rest pastures."""
    for number in range(24):
        image = noise(10, 32, 32, seed=number, low=1000, high=1040)
        image[:, :, :16] = labelled.stripes(image, True)[:, :, :16]
        codes = np.full((1, 32, 32), 23, np.uint8)
        codes[:, :, :16] = 31
        write(root / f"train/img/{number}.tif", image, FILE_ORDER)
        write(root / f"train/label/{number}.tif", codes)
    (root / "dataset").mkdir()
    (root / "dataset/train.txt").write_text("\n".join(map(str, range(24))) + "\n")
    assert {23, 31} <= CODES.keys()
    return root


RECIPES: dict[str, tuple[Callable[[Path], Path], dict[str, str]]] = {
    "finetune_eurosat": (labelled.eurosat, {"data.options": "[partial=true]"}),
    "probe_eurosat": (labelled.eurosat, {"data.options": "[partial=true]"}),
    "finetune_bigearthnet": (labelled.bigearthnet, {"data.options": "[partial=true]"}),
    "finetune_segmunich": (segmunich, {}),
    "finetune_oscd": (labelled.cities, {"data.options": "['window=16', 'cities={train: [paris], val: [rennes]}']"}),
}
ONE_PERCENT = {"data.train_options": "[fraction=0.5]", "stages.0.batch_size": "2"}
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    **{name: (name, {}) for name in RECIPES},
    "few labels": ("finetune_eurosat", ONE_PERCENT),
    "frozen encoder": ("finetune_oscd", {"finetune.train": "head", "head.head": "pyramid"}),
    "low rank": ("finetune_segmunich", {"finetune.train": "lora", "head.head": "pyramid"}),
}


def test_every_recipe_of_a_task_is_tried() -> None:
    tasks = {path.stem for path in CONFIGS.glob("*.yaml") if recipe.read(path).get("task", "pretrain") != "pretrain"}
    assert tasks == set(RECIPES)


@pytest.mark.acceptance
@pytest.mark.parametrize("way", list(WAYS))
def test_a_recipe_runs_from_weights_to_a_model(way: str, tmp_path: Path) -> None:
    name, changes = WAYS[way]
    make, own = RECIPES[name]
    bands = FILE_ORDER if name == "finetune_segmunich" else SENTINEL2_12
    encoder = spectralgpt.create_model("tiny", image_size=32, bands=SENTINEL2.select(bands))
    encoder.save_pretrained(tmp_path / "weights")
    options = {
        "config": str(CONFIGS / f"{name}.yaml"),
        "output": str(tmp_path / "runs"),
        "device": "cpu",
        "model.weights": str(tmp_path / "weights"),
        "data.root": str(make(tmp_path / "archive")),
        "data.num_workers": "0",
        "stages.0.image_size": "16",
        "stages.0.epochs": "6",
        "stages.0.warmup_epochs": "1",
        "stages.0.batch_size": "4",
        "stages.0.lr": "1e-3",
        "validate_every": "4",
        **own,
        **changes,
    }
    since = time.process_time()
    assert run_training(options) == 0
    assert time.process_time() - since < MOST_SECONDS, "of one core, whatever else the machine does"
    run = tmp_path / "runs" / name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert all(np.isfinite(losses)) and sum(losses[-3:]) < 1.1 * sum(losses[:3])
    model = spectralgpt.from_pretrained(run / "model")
    assert model.task == recipe.read(CONFIGS / f"{name}.yaml")["task"]
