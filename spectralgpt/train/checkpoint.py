# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or absent: a kill, a full disk or a flipped bit costs the newest one at most.

`step-<n>/` appears by one rename, after every file in it was flushed to disk and its size and sha256 were
written to manifest.json; nothing is ever written into a committed folder. Loading verifies the manifest first,
because PyTorch and safetensors load flipped bits without a word. The training state is tensors and plain values
only and is read with `weights_only=True`, so a foreign checkpoint cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from spectralgpt.errors import UserError

_WEIGHTS = "model.safetensors"
_STATE = "state.pt"
_MANIFEST = "manifest.json"
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to continue: weights by name, and a tree of tensors and plain values."""

    step: int
    weights: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Clears what a killed run left half-written."""
        self.folder = folder
        self.keep = keep
        for leftover in folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending."""
        matches = (re.fullmatch(r"step-(\d+)", path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in matches if match)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Commits a checkpoint, then drops those beyond `keep`.

        Raises:
            UserError: the disk is full or refuses; nothing half-written stays and the former checkpoints are untouched.
                A weight that is not finite is refused too: such a state must not replace a good one.
        """
        broken = [name for name, tensor in checkpoint.weights.items() if not tensor.isfinite().all()]
        if broken:
            raise UserError(
                f"checkpoint: expected finite weights at step {checkpoint.step}, got NaN or infinity in {broken[0]}; "
                "lower the learning rate"
            )
        final = self.folder / f"step-{checkpoint.step}"
        temporary = self.folder / f"{_TEMPORARY}{final.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(temporary, checkpoint)
            if final.exists():  # a damaged one of the same step, passed over when the run was resumed
                _discard(final)
            os.rename(temporary, final)
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"cannot save {final}: {reason}{self._way_out()}") from error
        for step in self.steps()[: -self.keep]:
            _discard(self.folder / f"step-{step}")
        return final

    def load_latest(self) -> Checkpoint:
        """The newest checkpoint that is whole; each damaged one on the way is named in a warning.

        Raises:
            UserError: there is no checkpoint, or none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self.folder / f"step-{step}"
            reason = damage(path)
            if reason is None:
                return Checkpoint(step, safetensors.torch.load_file(path / _WEIGHTS), _load_state(path / _STATE))
            warnings.warn(f"{path} is damaged ({reason}); trying the one before", stacklevel=2)
        if not steps:
            raise UserError(f"--resume: expected checkpoints in {self.folder}, found none")
        raise UserError(f"--resume: every checkpoint in {self.folder} is damaged; start anew without --resume")

    def _way_out(self) -> str:
        free = shutil.disk_usage(self.folder.parent).free / 2**20
        steps = self.steps()
        kept = f"step {steps[-1]} is kept, continue with --resume" if steps else "nothing is kept yet"
        return f" ({free:.0f} MiB free); {kept}"


def damage(path: Path) -> str | None:
    """Why a checkpoint folder cannot be trusted, naming the file; None where all sizes and hashes agree."""
    try:
        files = json.loads((path / _MANIFEST).read_bytes())["files"]
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST}: {getattr(error, 'strerror', None) or 'unreadable'}"
    if set(expected) != {_WEIGHTS, _STATE}:
        return f"{_MANIFEST}: expected {_WEIGHTS} and {_STATE}, got {sorted(expected)}"
    for name, (size, sha256) in expected.items():
        try:
            if (path / name).stat().st_size != size:
                return f"{name}: expected {size} bytes, got {(path / name).stat().st_size}"
            if _sha256(path / name) != sha256:
                return f"{name}: the content does not match its hash"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    """Every file and the folder itself reach the disk before this returns."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    safetensors.torch.save_file(checkpoint.weights, folder / _WEIGHTS)
    with open(
        folder / _STATE, "wb"
    ) as file:  # an open file: a full disk is an OSError here, not PyTorch's "unexpected pos"
        torch.save(checkpoint.state, file)
    files = {}
    for name in (_WEIGHTS, _STATE):
        _sync(folder / name)
        files[name] = {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
    (folder / _MANIFEST).write_text(json.dumps({"step": checkpoint.step, "files": files}, indent=1))
    _sync(folder / _MANIFEST)
    _sync(folder)


def _load_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: expected tensors and plain values, got objects that would run code; not loaded"
        ) from error
    return state


def _discard(path: Path) -> None:
    """Removes a checkpoint so that a kill in between leaves no half of it under its name."""
    doomed = path.with_name(f"{_TEMPORARY}old-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
