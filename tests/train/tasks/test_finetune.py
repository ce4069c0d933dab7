# SPDX-License-Identifier: Apache-2.0
"""Every task with labels end to end in small: the loss falls, the best validation is exported, a kill costs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import spectralgpt
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.bands import SENTINEL2_12 as BANDS
from spectralgpt.train import recipe
from spectralgpt.train.command import run_training
from spectralgpt.train.run import prepare
from spectralgpt.train.scores import PRIMARY
from tests.train import small_run, worlds
from tests.train.tasks import labelled

MIXED = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "erasing": 0.5}


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run) if "loss" in row]


ARCHIVES: dict[str, tuple[Callable[[Path], Path], str, list[str]]] = {
    "single_label": (labelled.eurosat, "eurosat", ["partial=true"]),
    "multi_label": (labelled.bigearthnet, "bigearthnet", ["partial=true"]),
    "segmentation": (labelled.fields, "folder", labelled.FIELDS),
    "change": (labelled.cities, "oscd", labelled.CITIES),
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str, list[str]]]:
    made: dict[str, Path] = {}

    def archive(task: str) -> tuple[Path, str, list[str]]:
        make, dataset, options = ARCHIVES[task]
        made[task] = made.get(task) or make(tmp_path_factory.mktemp(task))
        return made[task], dataset, options

    return archive


@pytest.fixture(autouse=True)
def _no_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn; showing them on a board takes longer than a run."""
    monkeypatch.setattr("spectralgpt.train.monitor.Monitor.figure", lambda *_: None)


@pytest.mark.parametrize("task", list(ARCHIVES))
def test_a_task_learns_and_exports_its_best_validation(task: str, archive: Any, tmp_path: Path) -> None:
    maps = task in ("segmentation", "change")
    changes = {"finetune": {"class_weights": "balanced"}, "data": {"crop_area": [0.9, 1.0]}} if maps else {}
    path = labelled.recipe(tmp_path, task, *archive(task), stage={"steps": 24}, **changes)
    assert run_training({"config": str(path)}) == 0
    run = tmp_path / "runs/run"
    found = losses(run)
    assert len(found) == 24 and sum(found[-4:]) < 0.9 * sum(found[:4])
    validations = [row for row in rows(run) if "validation_loss" in row]
    assert validations[-1]["validation_loss"] < 0.95 * validations[0]["validation_loss"]
    assert [row["step"] for row in validations] == [4, 8, 12, 16, 20, 24]
    scores = [row[PRIMARY[task]] for row in validations]
    best = validations[scores.index(max(scores))]
    record = json.loads((run / "checkpoints/best.json").read_text())
    assert (record["step"], record["score"]) == (best["step"], max(scores))
    kept = {int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")}
    assert {record["step"], 24} <= kept, "the best and the last"
    model = spectralgpt.from_pretrained(run / "model")
    weights = spectralgpt.models.safe_load.load_weights(run / f"checkpoints/step-{record['step']}/model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model.task == task and model.normalization["method"] == "minmax"
    assert (run / f"figures/step-{record['step']}.png").stat().st_size > 1000


def test_a_killed_run_with_mixing_goes_on_to_the_bit(archive: Any, tmp_path: Path) -> None:
    changes = {"finetune": MIXED, "model": {**labelled.TINY, "drop_path": 0.3}, "stage": {"accumulate": 2}}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        labelled.recipe(tmp_path / name, "single_label", *archive("single_label"), **changes)
    assert small_run.run({"config": str(tmp_path / "a/recipe.yaml")}).code == 0
    options, run = {"config": str(tmp_path / "b/recipe.yaml")}, tmp_path / "b/runs/run"
    for step in (5, 8):
        assert small_run.run(options, before=small_run.kill_after_step, arguments=(step,)).code == -9
        options = {"resume": str(run)}
    assert small_run.run(options).code == 0
    for name in ("metrics.jsonl", "model/model.safetensors", "model/config.json", "checkpoints/best.json"):
        assert (run / name).read_bytes() == (tmp_path / "a/runs/run" / name).read_bytes(), name


def test_the_head_alone_leaves_the_encoder_as_it_was(archive: Any, tmp_path: Path) -> None:
    changes = {"finetune": {"train": "head"}, "model": {**labelled.TINY, "drop_path": 0.3}, "ema": 0.5}
    path = labelled.recipe(tmp_path, "single_label", *archive("single_label"), stage={"steps": 4}, **changes)
    assert run_training({"config": str(path)}) == 0
    first = prepare(recipe.build(recipe.read(path)), None).model.state_dict()
    last = spectralgpt.from_pretrained(tmp_path / "runs/run/model").state_dict()
    same = {name for name, tensor in first.items() if torch.equal(tensor, last[name])}
    assert {name for name in first if name.startswith("encoder.")} <= same
    assert not {name for name in first if name.startswith("head.")} & same


def test_an_encoder_is_taken_over_with_its_normalisation(
    archive: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = spectralgpt.create_autoencoder("tiny", **labelled.TINY, image_size=24, bands=SENTINEL2.select(BANDS))
    pretrained.normalization = {"method": "percentile", "band_names": list(BANDS), "offset": None, "scale": None}
    pretrained.save_pretrained(tmp_path / "former/model")
    changes = {"model": {"weights": str(tmp_path / "former")}, "finetune": {"train": "head"}}
    path = labelled.recipe(tmp_path, "single_label", *archive("single_label"), stage={"steps": 2}, **changes)
    assert run_training({"config": str(path)}) == 0
    shown = capsys.readouterr().out
    assert "percentile normalisation" in shown
    assert re.search(r"37 tensors as they are, 1 resized \(pos_embed_spatial\), \d+ of a decoder or head left", shown)
    model = spectralgpt.from_pretrained(tmp_path / "runs/run/model")
    assert model.normalization["method"] == "percentile"
    assert torch.equal(model.encoder.blocks[1].attn.qkv.weight, pretrained.encoder.blocks[1].attn.qkv.weight)
    pretrained.resize(16)
    assert torch.equal(model.encoder.positions.spatial, pretrained.encoder.positions.spatial)
    (tmp_path / "former").rename(tmp_path / "gone")
    changed = {"resume": str(tmp_path / "runs/run"), "stages.0.steps": "4", "allow-config-change": ""}
    assert run_training(changed) == 0, "a run goes on when the weights it began with are gone"


def test_low_rank_additions_learn_and_are_exported_as_plain_weights(archive: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    changes = {"finetune": {"train": "lora", "lora_rank": 2}, "stage": {"steps": 4}}
    path = labelled.recipe(tmp_path, "single_label", *archive("single_label"), **changes)
    assert run_training({"config": str(path)}) == 0
    run = tmp_path / "runs/run"
    model = spectralgpt.from_pretrained(run / "model")
    fresh = prepare(recipe.build({**recipe.read(path), "finetune": {}}), None).model
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, fresh.state_dict()[name])}
    assert {name for name in changed if name.startswith("encoder.")} == {
        f"encoder.blocks.{block}.attn.{layer}.weight" for block in (0, 1) for layer in ("qkv", "proj")
    }


@pytest.mark.parametrize("task", ["single_label", pytest.param("change", marks=pytest.mark.acceptance)])
def test_two_processes_do_what_one_does(task: str, archive: Any, tmp_path: Path) -> None:
    """Mixing pairs the images of a process, so it is left out; unlabelled pixels are not."""
    changes = {
        "stage": {"steps": 4, "batch_size": 2, "accumulate": 2},
        "finetune": {"erasing": 0.5},
        "head": {"head": "linear"},
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        labelled.recipe(tmp_path / name, task, *archive(task), **changes)
    assert run_training({"config": str(tmp_path / "one/recipe.yaml")}) == 0
    parallel = "fsdp" if task == "change" else "ddp"
    ends = worlds.run(2, {"config": str(tmp_path / "two/recipe.yaml"), "speed.parallel": parallel})
    assert [end.code for end in ends] == [0, 0], ends
    one, two = (rows(tmp_path / name / "runs/run") for name in ("one", "two"))
    assert len(one) == len(two)
    for row, expected in zip(two, one, strict=True):
        for key in ("loss", "gradient_norm", "validation_loss", PRIMARY[task]):
            assert row.get(key, 0) == pytest.approx(expected.get(key, 0), rel=1e-4), (key, row)
    scores = [json.loads((tmp_path / name / "runs/run/checkpoints/best.json").read_text()) for name in ("one", "two")]
    assert scores[0]["step"] == scores[1]["step"]
