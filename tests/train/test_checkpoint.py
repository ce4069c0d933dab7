# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is whole or absent: crash at every call that touches the disk, damage every file, fill the disk."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spectralgpt.errors import UserError
from spectralgpt.train import checkpoint as module
from spectralgpt.train.checkpoint import Checkpoint, Checkpoints, damage

CALLS = ("mkdir", "rename", "fsync", "open")


def make(step: int) -> Checkpoint:
    weights = {"a": torch.full((40, 3), float(step)), "b": torch.arange(5.0) + step}
    return Checkpoint(
        step, weights, {"progress": {"step": step}, "moment": torch.full((7,), float(step)), "lr": (0.9, None)}
    )


def assert_is(found: Checkpoint, step: int) -> None:
    assert found.step == step == found.state["progress"]["step"]
    assert found.state["lr"] == (0.9, None)
    for name, tensor in make(step).weights.items():
        assert torch.equal(found.weights[name], tensor)


def test_round_trip_and_retention(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (3, 10, 9_999):
        checkpoints.save(make(step))
    assert checkpoints.steps() == [10, 9_999]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-9999"]
    assert_is(checkpoints.load_latest(), 9_999)


def test_crash_at_every_disk_call_loads_the_new_or_the_former(tmp_path: Path) -> None:
    """A child process dies right before the n-th call, for every n until a save goes through."""
    survived = 0
    for point in range(200):
        folder = tmp_path / str(point)
        Checkpoints(folder, keep=2).save(make(1))
        status = _in_child(lambda folder=folder, point=point: _die_at_call(folder, point))
        found = Checkpoints(folder, keep=2).load_latest()
        assert_is(found, found.step)
        assert found.step in (1, 2)
        assert not list(folder.glob(".tmp-*")), "leftovers are cleared when the run is opened again"
        if status == 0:
            assert found.step == 2
            break
        survived += 1
    assert survived >= 10, "a test that never died proves nothing"


def test_everything_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL keeps the page cache, so only the order of calls can show a missing fsync."""
    trace: list[tuple[str, str]] = []
    real_sync, real_rename = module._sync, os.rename
    monkeypatch.setattr(module, "_sync", lambda path: (trace.append(("sync", path.name)), real_sync(path)))
    monkeypatch.setattr(os, "rename", lambda a, b: (trace.append(("rename", Path(b).name)), real_rename(a, b)))
    Checkpoints(tmp_path / "checkpoints", keep=2).save(make(5))
    expected = ["model.safetensors", "state.pt", "manifest.json", ".tmp-step-5"]
    assert trace == [*(("sync", name) for name in expected), ("rename", "step-5"), ("sync", "checkpoints")]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("no folder")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "model.safetensors: the content": lambda path: _flip(path / "model.safetensors"),
    "state.pt: the content": lambda path: _flip(path / "state.pt"),
    "state.pt: expected": lambda path: os.truncate(path / "state.pt", 100),
    "model.safetensors: expected": lambda path: os.truncate(path / "model.safetensors", 0),
    "model.safetensors: No such file": lambda path: (path / "model.safetensors").unlink(),
    "manifest.json: No such file": lambda path: (path / "manifest.json").unlink(),
    "manifest.json: unreadable": lambda path: os.truncate(path / "manifest.json", 30),
    "manifest.json: Not a directory": _replace_by_file,
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_damage_falls_back_with_a_warning_that_names_it(tmp_path: Path, reason: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make(1))
    DAMAGES[reason](checkpoints.save(make(2)))
    with pytest.warns(UserWarning, match=f"step-2 is damaged .{reason}"):
        assert_is(checkpoints.load_latest(), 1)
    checkpoints.save(make(2))  # the run goes on and replaces the damaged one
    assert_is(checkpoints.load_latest(), 2)


def test_junk_beside_the_files_is_harmless(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=2).save(make(1))
    (path / "notes.txt").write_text("mine")
    assert damage(path) is None


def test_without_a_whole_checkpoint_there_is_an_error_and_no_fresh_start(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(UserError, match="found none"):
        checkpoints.load_latest()
    _flip(checkpoints.save(make(1)) / "state.pt")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="every checkpoint"):
        checkpoints.load_latest()


@pytest.mark.parametrize("limit", [0, 300, 700, 1500])
def test_full_disk_keeps_the_former_one(tmp_path: Path, limit: int) -> None:
    """RLIMIT_FSIZE makes every write beyond `limit` bytes fail, inside safetensors' own code too."""
    Checkpoints(tmp_path, keep=2).save(make(1))

    def save_under_limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            Checkpoints(tmp_path, keep=2).save(make(2))
        except UserError as error:
            os._exit(0 if "step 1 is kept" in str(error) and "\n" not in str(error) else 3)
        os._exit(4)

    assert os.waitstatus_to_exitcode(_in_child(save_under_limit)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1"]
    assert_is(Checkpoints(tmp_path, keep=2).load_latest(), 1)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    broken = make(2)
    broken.weights["a"][3, 1] = torch.nan
    with pytest.raises(UserError, match="finite weights at step 2"):
        Checkpoints(tmp_path, keep=2).save(broken)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = Checkpoints(tmp_path, keep=2).save(Checkpoint(1, make(1).weights, {"progress": Payload()}))
    assert damage(path) is None, "the manifest is no defence against its author"
    with pytest.raises(UserError, match="would run code"):
        Checkpoints(tmp_path, keep=2).load_latest()
    assert not (tmp_path / "ran").exists()


def _in_child(action: Callable[[], None]) -> int:
    """Runs `action` in a forked child and returns its wait status."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def _die_at_call(folder: Path, point: int) -> None:
    remaining = point

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal remaining
            if remaining == 0:
                os._exit(errno.EIO)
            remaining -= 1
            return real(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))
    module.safetensors.torch.save_file = dying(module.safetensors.torch.save_file)
    module.torch.save = dying(module.torch.save)
    module.json.dumps = dying(module.json.dumps)
    Checkpoints(folder, keep=2).save(make(2))
