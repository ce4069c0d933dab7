# SPDX-License-Identifier: Apache-2.0
"""A run is the same whatever the number of processes and whoever goes on with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.train import distributed
from tests.train import small_run, worlds

STAGE = {"batch_size": 4, "warmup_steps": 2, "lr": 1e-3, "mask_ratio": 0.75}
STAGES = [
    {"name": "first", "image_size": 16, "steps": 4, "accumulate": 2, **STAGE},
    {"name": "second", "image_size": 24, "steps": 2, **STAGE},
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "scene.tif"
    synthetic_scene(path, 64, 128, seed=1)
    return path


def recipe(folder: Path, image: Path, **changes: Any) -> dict[str, str]:
    changes = {"validate_every": 0, "checkpoint_every": 2, "stages": STAGES, **changes}
    path = small_run.write_recipe(folder, image, **changes)
    return {"config": str(path)}


@pytest.fixture(scope="module")
def alone(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By one process, without what draws random numbers per process."""
    folder = tmp_path_factory.mktemp("alone")
    assert [end.code for end in worlds.run(1, {**recipe(folder, image), "model.drop_path": "0"})] == [0]
    return folder / "runs" / "run"


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(run: Path, other: Path, relative: float = 1e-6) -> None:
    """The same steps with the same losses, and the same weights."""
    assert len(rows(run)) == len(rows(other))
    for row, expected in zip(rows(run), rows(other), strict=True):
        compared = ("step", "samples", "lr", "loss", "token_loss", "spectral_loss", "gradient_norm", "psnr")
        for key in compared:
            assert row.get(key, 0) == pytest.approx(expected.get(key, 0), rel=relative), (key, row)
    weights, expected_weights = (safetensors.torch.load_file(path / "model/model.safetensors") for path in (run, other))
    for name, tensor in expected_weights.items():
        if name.endswith("qkv.bias"):  # those of keys have no gradient but rounding, which Adam blows up
            weights[name][len(tensor) // 3 : len(tensor) * 2 // 3] = tensor[len(tensor) // 3 : len(tensor) * 2 // 3]
        torch.testing.assert_close(weights[name], tensor, rtol=relative, atol=20 * relative)


def test_two_processes_do_what_one_does(image: Path, alone: Path, tmp_path: Path) -> None:
    options = {**recipe(tmp_path, image), "model.drop_path": "0"}
    assert [end.code for end in worlds.run(2, options)] == [0, 0]
    run = tmp_path / "runs" / "run"
    assert_same(run, alone)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in alone.iterdir())
    assert sorted(path.name for path in run.parent.iterdir()) == ["run"], "the second process has no folder here"


def test_one_process_is_told_to_stop_and_all_do_then_two_go_on_to_the_byte(image: Path, tmp_path: Path) -> None:
    options = recipe(tmp_path, image)
    ends = worlds.run(2, options, before=worlds.terminate, arguments=(1, 3))
    assert [end.code for end in ends] == [143, 143]
    assert ["the state is saved" in end.stderr for end in ends] == [True, False], "told once, with the run's own folder"
    stopped, undisturbed = tmp_path / "runs" / "run", tmp_path / "runs" / "run-2"
    assert rows(stopped)[-1]["step"] == 3
    assert [end.code for end in worlds.run(2, options)] == [0, 0]  # drop path draws from each process's generator
    assert [end.code for end in worlds.run(2, {"resume": str(stopped)})] == [0, 0]
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (stopped / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_one_process_goes_on_with_what_two_began_in_shards(image: Path, alone: Path, tmp_path: Path) -> None:
    """Stopped amid the second stage, so that shards have gone through a change of stage, too."""
    options = {**recipe(tmp_path, image), "model.drop_path": "0", "speed.parallel": "fsdp"}
    assert [end.code for end in worlds.run(2, options, before=worlds.terminate, arguments=(0, 5))] == [143, 143]
    run = tmp_path / "runs" / "run"
    assert small_run.run({"resume": str(run)}).code == 0
    assert_same(run, alone)


def test_where_one_process_runs_out_of_memory_all_halve(image: Path, alone: Path, tmp_path: Path) -> None:
    """Each has 2 windows at a time, of which the second process can hold one."""
    options = {**recipe(tmp_path, image), "model.drop_path": "0"}
    ends = worlds.run(2, options, before=worlds.out_of_memory, arguments=(1, 1))
    assert [end.code for end in ends] == [0, 0]
    assert all("1 windows per forward pass from now on" in end.stderr for end in ends)
    assert_same(tmp_path / "runs" / "run", alone)


def test_processes_that_do_not_divide_the_batch_are_refused_with_both_numbers(image: Path, tmp_path: Path) -> None:
    ends = worlds.run(3, recipe(tmp_path, image))
    assert [end.code for end in ends] == [2, 2, 2]
    assert "stages.0.batch_size: expected a multiple of the 3 processes, got 4" in ends[0].stderr
    assert not (tmp_path / "runs").exists()


def test_a_mistake_is_told_once_whatever_the_number_of_processes() -> None:
    end = worlds.torchrun(2, ["--batch_size", "3"])
    assert end.stderr.count("error: ") == 1
    assert "error: batch_size: unknown key; did you mean stages.0.batch_size?" in end.stderr


def test_alone_everything_is_the_identity() -> None:
    tensor = torch.ones(3)
    assert distributed.total(tensor) is tensor
    assert distributed.agree(15) == 15
    assert distributed.from_all("x") == ["x"] and distributed.from_first("x") == "x"
    assert distributed.spread(distributed.whole(tensor), tensor) is tensor or torch.equal(tensor, torch.ones(3))
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_an_outline_keeps_everything_but_the_numbers_of_large_things() -> None:
    state = {"a": [torch.ones(2), torch.arange(3, dtype=torch.uint8)], "b": {"c": 1.5}}
    outline = distributed.outline(state)
    assert outline["a"][0].is_meta and outline["a"][0].shape == (2,)
    assert torch.equal(outline["a"][1], torch.arange(3)) and outline["b"] == {"c": 1.5}


@pytest.mark.acceptance
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_with_1_2_and_4_processes(image: Path, alone: Path, tmp_path: Path, parallel: str) -> None:
    options = ["--config", recipe(tmp_path, image)["config"], "--model.drop_path", "0", "--speed.parallel", parallel]
    for size in (1, 2, 4):
        assert worlds.torchrun(size, [*options, "--name", f"world-{size}"]).returncode == 0
        assert_same(tmp_path / "runs" / f"world-{size}", alone)


@pytest.mark.acceptance
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_begin_one_goes_on_and_four_finish(image: Path, alone: Path, tmp_path: Path, parallel: str) -> None:
    options = {**recipe(tmp_path, image), "model.drop_path": "0", "speed.parallel": parallel}
    run = tmp_path / "runs" / "run"
    for size, last in ((2, 2), (1, 3)):
        worlds.run(size, options, before=worlds.terminate, arguments=(0, last))
        options = {"resume": str(run)}
    assert [end.code for end in worlds.run(4, options)] == [0] * 4
    assert_same(run, alone)


@pytest.mark.acceptance
def test_torchrun_restarts_what_was_killed_and_the_curve_is_the_same(image: Path, tmp_path: Path) -> None:
    options = ["--config", recipe(tmp_path, image)["config"], "--checkpoint_every", "1"]
    longer = ["--stages.0.steps", "40"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=5", "-m", "spectralgpt.cli", "train", *options, *longer]
    run = tmp_path / "runs" / "run"
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as launcher:
        _wait_for_checkpoint(run, 3)
        worker = max(_children(launcher.pid))
        os.kill(worker, signal.SIGKILL)
        assert launcher.wait(240) == 0
    assert worlds.torchrun(2, [*options, *longer]).returncode == 0
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (run / name).read_bytes() == (run.parent / "run-2" / name).read_bytes(), name


@pytest.mark.acceptance
def test_no_process_outlives_a_launcher_that_was_killed(image: Path, tmp_path: Path) -> None:
    options = ["--config", recipe(tmp_path, image)["config"], "--stages.0.steps", "100000"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with subprocess.Popen([*command, "-m", "spectralgpt.cli", "train", *options]) as launcher:
        _wait_for_checkpoint(tmp_path / "runs" / "run", 2)
        workers = _children(launcher.pid)
        launcher.kill()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def _wait_for_checkpoint(run: Path, step: int) -> None:
    end = time.monotonic() + 120
    while not (run / "checkpoints" / f"step-{step}").exists() and time.monotonic() < end:
        time.sleep(0.02)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
