# SPDX-License-Identifier: Apache-2.0
"""kill -9 sixty times and SIGTERM forty times at random moments of real runs: `pytest -m acceptance`.

The children start from a server that imported everything, `torch._dynamo` included: otherwise nearly every kill would
hit an import, and the test would pass without a step redone.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.train.recipe import QUICKSTART
from tests.train import small_run
from tests.train.test_resume import last_checkpoint, last_step

STAGE = {"batch_size": 2, "warmup_steps": 2, "lr": 1e-3, "mask_ratio": 0.75}
STEPS = (300, 160)
CHANGES: dict[str, Any] = {
    "stages": [
        {"name": "first", "image_size": 16, "steps": STEPS[0], "accumulate": 2, **STAGE},
        {"name": "second", "image_size": 24, "steps": STEPS[1], **STAGE},
    ],
    "validate_every": 50,
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "scene.tif"
    synthetic_scene(path, 64, 128, seed=1)
    return path


def report(folder: Path) -> None:
    """Files tell the parent that steps are being made, and that a save is under way."""
    from spectralgpt.train.checkpoint import Checkpoints
    from spectralgpt.train.monitor import Monitor
    from spectralgpt.train.tasks.reconstruction import ReconstructionValidation

    (folder / "begun").unlink(missing_ok=True)
    (folder / "saving").unlink(missing_ok=True)
    real_save, real_record = Checkpoints.save, Monitor.record

    def save(self: Any, *arguments: Any, **options: Any) -> Path:
        (folder / "saving").touch()
        path = real_save(self, *arguments, **options)
        (folder / "saving").unlink()
        return path

    def record(self: Any, *arguments: Any, **options: Any) -> None:
        real_record(self, *arguments, **options)
        (folder / "begun").touch()

    Checkpoints.save, Monitor.record = save, record
    ReconstructionValidation.draw = Monitor.figure = lambda *_: None  # a second each, and nothing here looks at figures


def start(folder: Path, options: dict[str, str]) -> BaseProcess:
    child = small_run._CONTEXT.Process(
        target=small_run._child, args=(str(folder / "stderr"), options, report, (folder,))
    )
    (folder / "stderr").touch()
    (folder / "begun").unlink(missing_ok=True)
    child.start()
    return child


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> float:
    since = time.monotonic()
    while not condition():
        assert time.monotonic() - since < seconds, "waited in vain"
        time.sleep(0.002)
    return time.monotonic() - since


def whole_run(folder: Path, options: dict[str, str]) -> Path:
    child = start(folder, {**options, "output": str(folder / "runs")})
    child.join(300)
    assert child.exitcode == 0, (folder / "stderr").read_text()
    return folder / "runs" / "run"


def finish_over_kills(
    folder: Path, options: dict[str, str], kills: int, longest: float, steps: int
) -> tuple[Path, int, int]:
    """A run killed at random moments, every fifth from the beginning of a save on, and resumed to its end.

    Args:
        folder: for the run.
        options: of the command line.
        kills: how many.
        longest: seconds after `steps` within which it is killed.
        steps: up to so many rows of an attempt are waited for first; seconds alone would mean no step on a slow
            machine.

    Returns:
        The run's folder; how many kills fell into a save; how many steps were made more than once.
    """
    draw, in_save, redone = random.Random(0), 0, 0
    run, options = folder / "runs" / "run", {**options, "output": str(folder / "runs")}
    for number in range(kills):
        child = start(folder, options)
        wait_for(lambda child=child: (folder / "begun").exists() or not child.is_alive())
        enough = (last_checkpoint(run) if "resume" in options else 0) + draw.randint(0, steps)
        wait_for(lambda child=child, run=run, enough=enough: last_step(run) >= enough or not child.is_alive())
        if number % 5 == 0:
            wait_for(lambda child=child: (folder / "saving").exists() or not child.is_alive())
        time.sleep(draw.uniform(0.0, longest) if number % 5 else draw.uniform(0.0, 0.02))
        child.kill()
        child.join()
        assert child.exitcode == -9, (folder / "stderr").read_text()
        in_save += (folder / "saving").exists()
        if list((run / "checkpoints").glob("step-*")):
            redone += max(0, last_step(run) - last_checkpoint(run))
            options = {"resume": str(run)}
        else:  # nothing to resume
            options["name"] = f"again-{number}"
            run = folder / "runs" / options["name"]
    child = start(folder, options)
    child.join(300)
    assert child.exitcode == 0, (folder / "stderr").read_text()
    print(f"{kills} kills, {in_save} inside save, {redone} steps redone")
    return run, in_save, redone


def assert_same(run: Path, undisturbed: Path) -> None:
    for name in ("metrics.jsonl", "model/model.safetensors", "model/config.json"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.acceptance
def test_fifty_kills_at_random_moments_lose_nothing(image: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    options = {"config": str(small_run.write_recipe(tmp_path, image, **CHANGES))}
    run, in_save, redone = finish_over_kills(killed, options, 50, 0.15, steps=4)
    assert in_save >= 5
    assert redone >= 20
    assert_same(run, whole_run(whole, options))


@pytest.mark.acceptance
def test_the_quickstart_resumed_at_ten_random_points_has_the_same_curves(tmp_path: Path) -> None:
    """Its two stages as they are but shorter, over a synthetic scene."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    synthetic_scene(tmp_path / "scene.tif", 384, 768, seed=1)
    options = {"config": str(QUICKSTART), "name": "run", "threads": "1", "data.root": str(tmp_path / "scene.tif")}
    options |= {
        "stages.0.steps": "80",
        "stages.1.steps": "60",
        "validate_every": "50",
        "checkpoint_every": "7",
        "log_every": "1",
    }
    run, _, redone = finish_over_kills(killed, options, 10, 0.1, steps=18)
    assert redone >= 10
    assert_same(run, whole_run(whole, options))


def session_of(number: int) -> list[str]:
    """Processes of a session that still run, by their command."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == number and fields[0] not in "ZX":
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


def launch(size: int, what: list[str]) -> list[subprocess.Popen[str]]:
    """The plain command, in processes that find each other as torchrun's do; each has a session of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(size)}
    children = []
    for rank in range(size):
        place = {**where, "RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "spectralgpt.cli", "train", *what],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                text=True,
                env={**os.environ, **place},
            )
        )
    return children


def finish(children: list[subprocess.Popen[str]], code: int, seconds: float) -> None:
    """Waits for the end of all, which has to be the expected one."""
    for child in children:
        assert child.stderr is not None
        _, told = child.communicate(timeout=seconds)
        assert child.returncode == code, told


@pytest.mark.acceptance
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_at_random_moments_saves_and_leaves_in_time(
    image: Path, tmp_path: Path, workers: int, size: int
) -> None:
    """Ten times each: to one process, or to all with their data workers and the server of these."""
    recipe = [f"--config={small_run.write_recipe(tmp_path, image, **CHANGES)}", f"--data.num_workers={workers}"]
    finish(launch(size, [*recipe, f"--output={tmp_path / 'whole'}"]), 0, 300)
    draw, run = random.Random(workers), tmp_path / "stopped" / "run"
    what, longest, seen, most = [*recipe, f"--output={run.parent}"], 0.0, 0, 0
    for number in range(10):
        children, before = launch(size, what), size_of(run / "metrics.jsonl")
        wait_for(
            lambda children=children, before=before: (
                size_of(run / "metrics.jsonl") > before or any(child.poll() is not None for child in children)
            )
        )
        time.sleep(draw.uniform(0.0, 0.3))
        most = max(most, sum(len(session_of(child.pid)) for child in children))
        since = time.monotonic()
        if number % 2:
            for child in children:
                os.killpg(child.pid, signal.SIGTERM)
        else:
            children[number // 2 % size].terminate()
        finish(children, 143, 60)
        wait_for(lambda children=children: not any(session_of(child.pid) for child in children), 10)
        longest = max(longest, time.monotonic() - since)
        assert last_step(run) == last_checkpoint(run) > seen
        seen, what = last_step(run), [f"--resume={run}"]
    finish(launch(size, what), 0, 300)
    print(f"{size} processes, workers {workers}: at most {longest:.2f} s, {most} processes in all")
    assert most >= size * (4 if workers else 1), "the workers and their server were there"
    assert longest <= 10
    assert_same(run, tmp_path / "whole" / "run")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
