# SPDX-License-Identifier: Apache-2.0
"""A run's folder: never shared, never overwritten, gone again when the run never began."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spectralgpt.errors import UserError
from spectralgpt.train.folder import RunFolder


def begin(tmp_path: Path, name: str = "x") -> RunFolder:
    with RunFolder.create(str(tmp_path / "runs"), name) as folder:
        folder.write_config("name: x\n")
    return folder


def test_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    assert [begin(tmp_path).path.name for _ in range(3)] == ["x", "x-2", "x-3"]


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"), RunFolder.create(str(tmp_path / "a" / "runs"), "x"):
        raise UserError("data.root: no such file")
    assert not list(tmp_path.iterdir())


def test_a_run_that_began_stays_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(UserError), RunFolder.create(str(tmp_path / "runs"), "x") as folder:
        folder.write_config("name: x\n")
        raise UserError("diverged")
    assert folder.config.read_text() == "name: x\n"


def test_a_second_trainer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path; from spectralgpt.train.folder import RunFolder\n"
        f"with RunFolder(Path({str(folder.path)!r})): print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training"), folder:
            pass
        holder.kill()  # the kernel lets go of the lock
        holder.wait()
        with folder:
            pass


@pytest.mark.parametrize("inner", ["file", "file/deeper"])
def test_an_output_that_cannot_be_written(tmp_path: Path, inner: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output: cannot write .*choose a folder with --output"):
        RunFolder.create(str(tmp_path / inner), "x")


def test_resume_finds_the_run_that_saved_last(tmp_path: Path) -> None:
    for number, (name, saved) in enumerate({"x": 5, "x-2": 9, "x-3": None, "y": 20}.items()):
        path = tmp_path / name
        path.mkdir()
        if saved is not None:
            (path / "checkpoints" / f"step-{number}").mkdir(parents=True)
            os.utime(path / "checkpoints" / f"step-{number}", (saved, saved))
    assert RunFolder.find(str(tmp_path), "x").path.name == "x-2"
    with pytest.raises(UserError, match=r"expected a run with checkpoints at .*z, found none"):
        RunFolder.find(str(tmp_path), "z")


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a folder of a run, with config.yaml and checkpoints"):
        RunFolder(tmp_path / "nowhere").stored_config()
