# SPDX-License-Identifier: Apache-2.0
"""The folder of a run, `<output>/<name>`: found, created, locked; nothing of a former run is overwritten.

A new run whose name is taken gets a number behind it, so the plain command works twice. The lock is the
kernel's (flock): it ends with the process however that ends, so a killed run leaves nothing to clean up by
hand.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from spectralgpt.errors import UserError
from spectralgpt.files import sync
from spectralgpt.train.durable import replace_file

_LOCK = ".lock"


class RunFolder:
    """One run's folder, held by this process alone while the `with` block lasts."""

    def __init__(self, path: Path, made: Sequence[Path] = ()) -> None:
        """Takes an existing folder; `made` are the folders that did not exist before, innermost first."""
        self.path = path
        self._made = made
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.model = path / "model"

    @classmethod
    def create(cls, output: str, name: str) -> RunFolder:
        """Makes `<output>/<name>`, or `<output>/<name>-2`, -3 ... where that holds a run already."""
        try:
            path = next(path for path in _numbered(Path(output), name) if not _is_taken(path))
            made = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"output: cannot write {Path(output) / name}: {error.strerror}; choose a folder with --output"
            ) from error
        return cls(path, made)

    @classmethod
    def find(cls, output: str, name: str) -> RunFolder:
        """The run of this name, numbered ones included, that saved a checkpoint last."""
        saved = {
            max(step.stat().st_mtime_ns for step in steps): path
            for path in _existing(Path(output), name)
            if (steps := list((path / "checkpoints").glob("step-*")))
        }
        if not saved:
            raise UserError(f"--resume: expected a run with checkpoints at {Path(output) / name}, found none")
        return cls(saved[max(saved)])

    def stored_config(self) -> Path:
        """The recipe the run began with."""
        if not self.config.is_file():
            raise UserError(f"--resume: expected a folder of a run, with config.yaml and checkpoints, got {self.path}")
        return self.config

    def write_config(self, text: str) -> None:
        """Stores the recipe and makes the inner folders: from here on the folder holds a run."""
        replace_file(self.config, text)
        self.figures.mkdir(exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        for folder in (self.path, self.path.parent):  # or a power cut takes the way to the checkpoints with it
            sync(folder)

    def __enter__(self) -> RunFolder:
        """Locks the folder; a second trainer on it ends here, and a folder that takes no files is found out."""
        try:
            self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise UserError(
                f"output: cannot write {self.path}: {error.strerror}; choose a folder with --output"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise UserError(f"{self.path}: another process is training in this folder; choose a --name") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases the lock; folders made for a run that never began go again."""
        if not self.config.exists() and self._made:
            (self.path / _LOCK).unlink()
            for path in self._made:
                path.rmdir()
        os.close(self._lock)


def _numbered(output: Path, name: str) -> Iterator[Path]:
    yield output / name
    for number in itertools.count(2):
        yield output / f"{name}-{number}"


def _is_taken(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _existing(output: Path, name: str) -> Iterator[Path]:
    return itertools.takewhile(Path.exists, _numbered(output, name))
