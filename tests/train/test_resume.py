# SPDX-License-Identifier: Apache-2.0
"""kill -9 at any moment, then `--resume`: metrics and weights equal those of a run that nobody disturbed, byte
for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.train.command import run_training
from tests.train import small_run


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "scene.tif"
    synthetic_scene(path, 64, 128, seed=1)
    return path


@pytest.fixture(scope="module")
def undisturbed(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert small_run.run({"config": str(small_run.write_recipe(folder, image))}).code == 0
    return folder / "runs" / "run"


def last_step(run: Path) -> int:
    return max((json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()), default=0)


def last_checkpoint(run: Path) -> int:
    return max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def test_a_run_writes_what_it_promises(undisturbed: Path) -> None:
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    assert [row["step"] for row in losses] == list(range(1, 15))
    assert [row["stage"] for row in losses] == ["first"] * 8 + ["second"] * 6
    assert losses[-1]["samples"] == 8 * 2 * 2 + 6 * 2
    validations = [row for row in rows if "psnr" in row]
    assert [row["step"] for row in validations] == [5, 8, 13, 14]
    assert {"psnr", "psnr_nearest", "psnr_mean", "validation_loss", "windows"} <= set(validations[0])
    assert sorted(path.name for path in (undisturbed / "figures").iterdir()) == [
        f"step-{n}.png" for n in (13, 14, 5, 8)
    ]
    assert sorted(path.name for path in (undisturbed / "checkpoints").iterdir()) == [
        "best.json",
        "step-11",
        "step-14",
    ]
    assert list((undisturbed / "tensorboard").iterdir())
    assert yaml.safe_load((undisturbed / "config.yaml").read_text())["stages"][1]["image_size"] == 24


def test_the_exported_model_loads_with_bands_and_normalisation(undisturbed: Path) -> None:
    import spectralgpt

    model = spectralgpt.from_pretrained(undisturbed / "model")
    assert model.config.height_width == (24, 24)
    assert model.config.band_names[:2] == ("B01", "B02")
    assert len(model.config.wavelengths) == 12
    assert model.normalization is not None


def test_however_often_killed_the_curve_is_the_same_to_the_byte(image: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Checkpoints are due at steps 3, 6, 8 (the first stage's end), 11 and 14; comments: where each attempt starts."""
    recipe = small_run.write_recipe(tmp_path, image)
    run = tmp_path / "runs" / "run"
    kills = [
        (small_run.kill_after_step, 5),  # 0
        (small_run.kill_inside_save, 2),  # 3, dies saving step 6
        (small_run.kill_after_step, 8),  # 3
        (small_run.kill_inside_save, 3),  # 6, dies saving step 8
        (small_run.kill_after_step, 10),  # 6
        (small_run.kill_after_step, 13),  # 8, at the boundary
        (small_run.kill_inside_save, 4),  # 11, dies saving step 14
    ]
    redone = 0
    options = {"config": str(recipe)}
    for kill, when in kills:
        assert small_run.run(options, before=kill, arguments=(when,)).code == -9
        redone += last_step(run) - last_checkpoint(run)
        options = {"resume": str(run)}
    assert redone >= 8, "a test that redoes no step proves nothing"
    assert small_run.run(options).code == 0
    for name in ("metrics.jsonl", "model/model.safetensors", "model/config.json"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_sigterm_finishes_the_step_saves_and_exits_with_143(image: Path, undisturbed: Path, tmp_path: Path) -> None:
    recipe = small_run.write_recipe(tmp_path, image)
    run = tmp_path / "runs" / "run"
    assert small_run.run({"config": str(recipe)}, before=small_run.terminate_after_step, arguments=(4,)).code == 143
    assert last_step(run) == last_checkpoint(run) == 4
    assert small_run.run({"config": str(recipe), "resume": ""}).code == 0
    assert (run / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


def test_another_model_is_refused_and_names_the_key(undisturbed: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file() and path.name != ".lock"
    }
    code, stderr = small_run.run({"resume": str(undisturbed), "model.depth": "3"})
    assert code == 2
    assert "model.depth (2 before, 3 now)" in stderr
    assert stderr.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}, "a refused run changes nothing"


def test_a_finished_run_may_be_resumed_and_stays_as_it_is(undisturbed: Path) -> None:
    metrics = (undisturbed / "metrics.jsonl").read_bytes()
    assert small_run.run({"resume": str(undisturbed)}).code == 0
    assert (undisturbed / "metrics.jsonl").read_bytes() == metrics


def test_a_page_that_cannot_be_written_is_a_warning_for_the_run_is_done(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    with pytest.warns(UserWarning, match=r"report\.html: cannot be written: Is a directory; the run is complete"):
        assert run_training({"resume": str(run)}) == 0


def test_another_recipe_is_shown_and_needs_a_word(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    changes = {"stages.1.lr": "0.002", "optim.weight_decay": "0.1", "speed.recompute": "blocks", "stages.1.steps": "15"}
    code, stderr = small_run.run({"resume": str(run), **changes})
    assert code == 2
    for line in ("stages.1.lr (0.001 before, 0.002 now)", "optim.weight_decay (0.05 before, 0.1 now)", "(6 before, 15"):
        assert line in stderr
    assert "recompute" not in stderr, "what changes no number needs no word"
    assert stderr.splitlines()[-1].endswith("go on with them by --allow-config-change")
    assert (run / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    assert small_run.run({"resume": str(run), **changes, "allow-config-change": ""}).code == 0
    assert last_step(run) == 23


def test_no_word_lets_another_model_pass(undisturbed: Path) -> None:
    code, stderr = small_run.run({"resume": str(undisturbed), "seed": "6", "allow-config-change": ""})
    assert code == 2
    assert "expected the model the run began with, got other values of seed (5 before, 6 now)" in stderr
