# SPDX-License-Identifier: Apache-2.0
"""What stays of a run's checkpoints, what is refused, and what a disk without room does to training."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from spectralgpt.errors import UserError
from spectralgpt.train import durable
from spectralgpt.train.checkpoint import Best, Checkpoint, Checkpoints, NotFinite, SaveFailed
from tests.train.saving import assert_is, flip, make


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_and_retention(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (3, 10, 9_999):
        checkpoints.save(make(step))
    assert checkpoints.steps() == [10, 9_999]
    assert names(tmp_path / "checkpoints") == ["step-10", "step-9999"]
    assert_is(checkpoints.load_latest(), 9_999)
    assert checkpoints.best() is None
    assert len({path.stat().st_mode for path in (tmp_path / "checkpoints/step-10").iterdir()}) == 1, (
        "read one, read all"
    )


def test_the_best_of_a_stage_stays_beyond_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in ((1, 0.5), (2, 0.7), (3, 0.6), (4, None), (5, 0.69)):
        checkpoints.save(make(step), score)
    assert checkpoints.best() == Best(step=2, stage=0, score=0.7)
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.save(make(6, stage=1), 0.1)
    assert checkpoints.best() == Best(step=6, stage=1, score=0.1), "scores of two stages cannot be compared"
    assert names(tmp_path) == ["best.json", "step-5", "step-6"]


@pytest.mark.parametrize("content", ["", "{", '{"step": 1}', "[" * 100_000, '{"step": 9, "stage": 0, "score": 1}'])
def test_a_pointer_to_the_best_that_says_nothing_is_ignored(tmp_path: Path, content: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make(1), 0.5)
    (tmp_path / "best.json").write_text(content)
    assert checkpoints.best() is None
    checkpoints.save(make(2), 0.6)
    assert checkpoints.best() == Best(2, 0, 0.6)


def test_a_best_that_is_trained_again_gives_way(tmp_path: Path) -> None:
    """Its checkpoint was found damaged and the run went on from the one before."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make(1))
    checkpoints.save(make(3), 0.9)
    checkpoints.save(make(2), 0.5)
    assert checkpoints.best() == Best(2, 0, 0.5)
    checkpoints.save(make(4), float("nan"))
    assert checkpoints.best() == Best(2, 0, 0.5)


def test_damaged_ones_do_not_count_among_those_that_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make(1))
    flip(checkpoints.save(make(2)) / "state.pt", 900)
    with pytest.warns(UserWarning, match="step-2 is damaged"):
        checkpoints.load_latest()
    checkpoints.save(make(3))
    assert checkpoints.steps() == [1, 3]


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make(1))
    flip(checkpoints.save(make(2)) / "state.pt", 900)
    with pytest.warns(UserWarning, match="step-2 is damaged"):
        checkpoints.load_latest()
    checkpoints.save(make(2))
    assert_is(checkpoints.load_latest(), 2)


def test_junk_beside_the_files_is_harmless(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=2).save(make(1))
    (path / "notes.txt").write_text("mine")
    assert durable.damage(path) is None


def test_without_a_whole_checkpoint_there_is_an_error_and_no_fresh_start(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(UserError, match="found none"):
        checkpoints.load_latest()
    flip(checkpoints.save(make(1)) / "state.pt", 900)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="every checkpoint"):
        checkpoints.load_latest()


def test_a_newer_format_is_refused_by_name_instead_of_falling_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make(1))
    manifest = checkpoints.save(make(2)) / durable.MANIFEST
    record = json.loads(manifest.read_text()) | {"format": durable.FORMAT + 1}
    del record["sha256"]
    manifest.write_text(json.dumps({**record, "sha256": durable.digest(record)}))
    with pytest.raises(UserError, match=r"step-2: expected format 1 or older, got 2; a newer spectralgpt wrote it"):
        checkpoints.load_latest()


@pytest.mark.parametrize("named", ["a", "state.pt 0"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, named: str, value: float) -> None:
    broken = make(2)
    (broken.weights["a"] if named == "a" else broken.state["moment"]).view(-1)[4] = value
    with pytest.raises(NotFinite, match=f"finite values at step 2, got NaN or infinity in {named};"):
        Checkpoints(tmp_path, keep=2).save(broken)
    assert names(tmp_path) == []


class _Usage(NamedTuple):
    free: int


def test_too_little_space_is_told_before_the_first_step_and_before_each_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path / "not yet" / "checkpoints", keep=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(free=11 * 2**20))
    with pytest.raises(SaveFailed, match=r"checkpoints: expected 12\.0 MiB of free space, got 11\.0; .*nothing is"):
        checkpoints.require_space(10 * 2**20)
    checkpoints = Checkpoints(tmp_path / "not yet" / "checkpoints", keep=2)
    checkpoints.require_space(9 * 2**20)
    checkpoints.save(make(1))
    assert checkpoints.needed < 2**16, "the size of the last one is the measure now"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(free=checkpoints.needed))
    with pytest.raises(SaveFailed, match=r"no space left on the disk.*step 1 is kept"):
        checkpoints.save(make(2))
    assert checkpoints.steps() == [1]


def test_training_goes_on_without_space_until_the_third_failure_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.attempt(make(1))
    real, full = os.rename, [False]

    def rename(source: Path, target: Path) -> None:
        if full[0] and Path(target).name.startswith("step"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    for step, full[0] in ((2, True), (3, True), (4, False), (5, True), (6, True)):
        if full[0]:
            with pytest.warns(UserWarning, match=rf"cannot save .*step-{step}: No space .*training goes on"):
                assert not checkpoints.attempt(make(step))
        else:
            assert checkpoints.attempt(make(step))
    with pytest.raises(SaveFailed, match=r"step 4 is kept.*3 checkpoints in a row failed"):
        checkpoints.attempt(make(7))
    assert names(tmp_path) == ["step-1", "step-4"]
    assert_is(checkpoints.load_latest(), 4)


def test_a_failure_inside_what_writes_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "part").write_text("half")
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        durable.commit(tmp_path / "x", write)
    assert names(tmp_path) == []


def test_the_state_is_read_as_a_strangers(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = Checkpoints(tmp_path, keep=2).save(Checkpoint(1, make(1).weights, {"lr": Payload()}))
    assert durable.damage(path) is None, "the manifest is no defence against its author"
    with pytest.raises(UserError, match=r"state\.pt: expected tensors and plain values, got: unsupported object"):
        Checkpoints(tmp_path, keep=2).load_latest()
    assert not (tmp_path / "ran").exists()
