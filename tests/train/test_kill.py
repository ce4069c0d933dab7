# SPDX-License-Identifier: Apache-2.0
"""kill -9 fifty times and SIGTERM twenty times at random moments of real runs: `pytest -m acceptance`.

The children start from a server that imported everything, `torch._dynamo` included: otherwise nearly every kill would
hit an import, and the test would pass without a step redone.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from spectralgpt.data.synthetic import synthetic_scene
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


def whole_run(folder: Path, image: Path) -> Path:
    folder.mkdir()
    child = start(folder, {"config": str(small_run.write_recipe(folder, image, **CHANGES))})
    child.join(120)
    assert child.exitcode == 0, (folder / "stderr").read_text()
    return folder / "runs" / "run"


def assert_same(run: Path, undisturbed: Path) -> None:
    for name in ("metrics.jsonl", "model/model.safetensors", "model/config.json"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.acceptance
def test_fifty_kills_at_random_moments_lose_nothing(image: Path, tmp_path: Path) -> None:
    undisturbed = whole_run(tmp_path / "whole", image)
    draw, folder = random.Random(0), tmp_path / "killed"
    folder.mkdir()
    run, options = folder / "runs" / "run", {"config": str(small_run.write_recipe(folder, image, **CHANGES))}
    in_save = redone = kills = 0
    while kills < 50:
        child = start(folder, options)
        wait_for(lambda child=child: (folder / "begun").exists() or not child.is_alive())
        time.sleep(draw.uniform(0.0, 0.25))
        child.kill()
        child.join()
        assert child.exitcode == -9, (folder / "stderr").read_text()
        kills += 1
        in_save += (folder / "saving").exists()
        if not list((run / "checkpoints").glob("step-*")):
            options = {"config": options["config"], "name": f"again-{kills}"} if kills < 3 else options
            run = folder / "runs" / options.get("name", "run")
            continue
        redone += max(0, last_step(run) - last_checkpoint(run))
        options = {"resume": str(run)}
    child = start(folder, options)
    child.join(120)
    assert child.exitcode == 0, (folder / "stderr").read_text()
    print(f"{kills} kills, {in_save} inside save, {redone} steps redone")
    assert in_save >= 5
    assert redone >= 20
    assert_same(run, undisturbed)


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


@pytest.mark.acceptance
@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_at_random_moments_saves_and_leaves_in_time(image: Path, tmp_path: Path, workers: int) -> None:
    """The plain command, ten times each: to the process, or to its group, data workers and their server included."""
    undisturbed = whole_run(tmp_path / "whole", image)
    draw, folder = random.Random(workers), tmp_path / "stopped"
    folder.mkdir()
    run = folder / "runs" / "run"
    what = [f"--config={small_run.write_recipe(folder, image, **CHANGES)}", f"--data.num_workers={workers}"]
    longest, seen, most = 0.0, 0, 0
    for number in range(11):
        child = subprocess.Popen(
            [sys.executable, "-m", "spectralgpt.cli", "train", *what],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        assert child.stderr is not None
        if number < 10:
            before = size_of(run / "metrics.jsonl") if number else 0
            wait_for(
                lambda child=child, before=before: size_of(run / "metrics.jsonl") > before or child.poll() is not None
            )
            time.sleep(draw.uniform(0.0, 0.3))
            most = max(most, len(session_of(child.pid)))
            (os.killpg if number % 2 else os.kill)(child.pid, signal.SIGTERM)
            longest = max(longest, wait_for(lambda child=child: child.poll() is not None))
            assert child.returncode == 143, child.stderr.read()
            assert last_step(run) == last_checkpoint(run) > seen
            seen = last_step(run)
            longest = max(longest, wait_for(lambda child=child: not session_of(child.pid), 10))
        else:
            assert child.wait(120) == 0, child.stderr.read()
        child.stderr.close()
        what = [f"--resume={run}"]
    print(f"workers {workers}: at most {longest:.2f} s, {most} processes")
    assert most >= (4 if workers else 1), "the workers and their server were there"
    assert longest <= 10
    assert_same(run, undisturbed)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
