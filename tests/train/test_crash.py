# SPDX-License-Identifier: Apache-2.0
"""Die at every call of a save that changes the disk, and inside every write: the new or the former one loads.

Children die by `os._exit` before the n-th call, or at the first one after RLIMIT_FSIZE cut a write short. Neither
loses the page cache, so a missing flush shows only in the order of the calls, which has a test of its own. Savers
known to be wrong go through the same tests and must fail them.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spectralgpt.models import checkpoint as weights
from spectralgpt.train import durable
from spectralgpt.train.checkpoint import Checkpoints, read
from tests.train.saving import assert_is, flip, in_child, make

Save = Callable[[Path], object]
DIED = 99
_PARTS = 5


class Disk:
    """Numbers the calls that change the disk; ends the process before one of them, or inside the write it begins."""

    def __init__(self, die_at: int | None = None, limit: int | None = None) -> None:
        self.die_at, self.limit = die_at, limit
        self.calls: list[tuple[str, str]] = []
        self.sizes: dict[str, int] = {}

    def install(self) -> None:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        os.fsync = self._fsync(os.fsync)
        weights.save_file = self._counted("write", weights.save_file, path=1)
        opened = self._opened(io.open)
        io.open = builtins.open = opened

    def _note(self, name: str, path: object) -> None:
        place = len(self.calls) - (self.die_at if self.die_at is not None else 10**9)
        if (place == 0 and self.limit is None) or place == 1:  # after a torn write, before anybody cleans up
            os._exit(DIED)
        if place == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))
        self.calls.append((name, str(path)))

    def _counted(self, name: str, real: Callable[..., Any], path: int = 0) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._note(name, arguments[path])
            return real(*arguments, **options)

        return call

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            self._note("fsync", path)
            self.sizes[path] = os.path.getsize(path)
            real(descriptor)

        return call

    def _opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if "w" in mode or "x" in mode:
                self._note("write", file)
            return real(file, mode, *arguments, **options)

        return call


def crashes(folder: Path, prepare: Save, save: Save, survives: Callable[[Path], bool]) -> tuple[int, list[str]]:
    """Saves once for the list of calls, then dies at each of them; returns how often, and where nothing loaded."""
    prepare(folder / "before")
    shutil.copytree(folder / "before", folder / "whole")
    done, report = folder / "whole", folder / "calls"

    def trace() -> None:
        disk = Disk()
        disk.install()
        save(done)
        with io.open(os.open(report, os.O_CREAT | os.O_WRONLY), "a") as file:  # noqa: UP020 - not the counted one
            file.writelines(f"{name}\t{path}\t{disk.sizes.get(path, 0)}\n" for name, path in disk.calls)

    assert in_child(trace) == 0
    calls = [line.split("\t") for line in report.read_text().splitlines()]
    points: list[tuple[int, int | None]] = [(index, None) for index in range(len(calls))]
    for index, (name, _, size) in enumerate(calls):
        if name == "write":
            points += [(index, int(size) * part // _PARTS) for part in range(_PARTS)]
    broken = []
    for number, (index, limit) in enumerate(points):
        place = folder / str(number)
        shutil.copytree(folder / "before", place)

        def die(place: Path = place, index: int = index, limit: int | None = limit) -> None:
            Disk(index, limit).install()
            with contextlib.suppress(Exception):  # of a saver that does not clean up after a torn write
                save(place)
            os._exit(0 if limit is None else DIED)

        assert in_child(die) == DIED, f"did not die at {calls[index]}, limit {limit}"
        if not survives(place):
            broken.append(f"{calls[index]}, limit {limit}")
        shutil.rmtree(place, ignore_errors=True)
    return len(points), broken


def two_saved(folder: Path) -> None:
    for step in (1, 2):
        Checkpoints(folder, keep=2).save(make(step), score=-1 / step)


def newest_damaged(folder: Path) -> None:
    two_saved(folder)
    Checkpoints(folder, keep=2).save(make(3))
    flip(folder / "step-3" / "state.pt", 900)


def save_third(folder: Path) -> None:
    Checkpoints(folder, keep=2).save(make(3), score=-0.1)


@pytest.mark.filterwarnings("ignore:.*step-3 is damaged")
@pytest.mark.parametrize(("prepare", "least"), [(two_saved, 40), (newest_damaged, 40)])
def test_the_new_or_the_former_checkpoint_loads(tmp_path: Path, prepare: Save, least: int) -> None:
    def survives(folder: Path) -> bool:
        checkpoints = Checkpoints(folder, keep=2)
        found = checkpoints.load_latest()
        assert_is(found, found.step)
        best = checkpoints.best()
        assert best is not None
        assert_is(read(folder / f"step-{best.step}"), best.step)
        assert not list(folder.glob(".tmp-*")), "leftovers go when the run is opened again"
        return found.step in (2, 3)

    points, broken = crashes(tmp_path, prepare, save_third, survives)
    print(f"{points} crash points, {len(broken)} broken")
    assert broken == []
    assert points >= least


def test_the_harness_catches_a_saver_that_writes_in_place(tmp_path: Path) -> None:
    def save(folder: Path, step: int = 2) -> None:
        folder.mkdir(exist_ok=True)
        with open(folder / "state.pt", "wb") as file:
            torch.save({"moment": torch.full((200,), float(step))}, file)
            file.flush()
            os.fsync(file.fileno())

    def survives(folder: Path) -> bool:
        try:
            return bool(torch.load(folder / "state.pt", weights_only=True)["moment"][0] > 0)
        except Exception:
            return False

    _, broken = crashes(tmp_path, lambda folder: save(folder, step=1), save, survives)
    assert len(broken) >= _PARTS - 1


def flushed_in_order(calls: list[tuple[str, str]], final: Path) -> bool:
    """Every file, then its folder, then the rename, then the parent."""
    temporary = str(final.with_name(f".tmp-{final.name}"))
    if ("rename", temporary) not in calls or not final.is_dir():
        return False
    renamed = calls.index(("rename", temporary))
    before = [path for name, path in calls[:renamed] if name == "fsync"]
    files = [f"{temporary}/{path.name}" for path in final.iterdir()]
    written = [index for index, (name, path) in enumerate(calls) if name == "write" and path.startswith(temporary)]
    return (
        before[-1] == temporary
        and set(files) <= set(before)
        and all(("fsync", calls[index][1]) in calls[index:renamed] for index in written)
        and ("fsync", str(final.parent)) in calls[renamed:]
    )


@pytest.mark.parametrize("forgets", [None, "files", "folder", "parent"])
def test_everything_is_flushed_before_the_rename(tmp_path: Path, forgets: str | None) -> None:
    final = tmp_path / "checkpoints" / "step-5"
    skipped: dict[str | None, Callable[[Path], bool]] = {
        None: lambda path: False,
        "files": lambda path: path.suffix == ".pt",
        "folder": lambda path: path.name == ".tmp-step-5",
        "parent": lambda path: path == final.parent,
    }

    def trace() -> None:
        disk, real = Disk(), durable.sync
        durable.sync = lambda path: None if skipped[forgets](path) else real(path)
        disk.install()
        Checkpoints(final.parent, keep=2).save(make(5))
        os._exit(7 if flushed_in_order(disk.calls, final) else 8)

    assert in_child(trace) == (7 if forgets is None else 8)
