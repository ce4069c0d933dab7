# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: whole or absent, verified on load, and never one that is not finite.

`checkpoints/step-<n>/` is committed by `train/durable.py` and holds model.safetensors and state.pt. The training
state is tensors and plain values only and is read as a stranger's file is, so a foreign checkpoint cannot run code.
A disk that is full costs the newest checkpoint, not the run.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from spectralgpt.errors import UserError
from spectralgpt.models.checkpoint import write_weights
from spectralgpt.models.safe_load import load_tensors, load_weights, tensors_in
from spectralgpt.train import distributed, durable

WEIGHTS = "model.safetensors"
STATE = "state.pt"
_BEST = "best.json"
_MAX_FAILURES = 3
_HEADROOM = 1.2


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to continue: weights by name, and a tree of tensors and plain values."""

    step: int
    weights: dict[str, Tensor]
    state: dict[str, Any]


class SaveFailed(UserError):
    """The disk is full or refuses; the former checkpoints are untouched."""


class NotFinite(UserError):
    """The run diverged; a state that holds NaN or infinity is never saved."""

    exit_code = 3


class Best(NamedTuple):
    """The kept checkpoint with the best validation of its stage."""

    step: int
    stage: int
    score: float


@dataclass
class Checkpoints:
    """The checkpoints of one run: the newest `keep` and the best stay. Of several processes only the first saves.

    Attributes:
        folder: that holds them.
        keep: how many of the newest stay, besides the best; 2 or more, as the newest may be found damaged.
        needed: bytes that the next one is expected to take.
    """

    folder: Path
    keep: int
    needed: int = 0
    _failures: int = 0
    _damaged: set[int] = field(default_factory=set)

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending."""
        matches = (re.fullmatch(r"step-(\d{1,18})", path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in matches if match)

    def require_space(self, needed: int = 0) -> None:
        """Finds out that the disk has no room for one more checkpoint before it is written.

        Args:
            needed: bytes that one takes, where none was saved yet.

        Raises:
            SaveFailed: names the folder, what is needed and what is free.
        """
        self.needed = self.needed or needed
        free = _free(self.folder)
        if free < _HEADROOM * self.needed:
            raise SaveFailed(self._no_room("no space left on the disk", free))

    def save(self, checkpoint: Checkpoint, score: float | None = None) -> Path:
        """Commits a checkpoint, then drops those that are neither among the newest nor the best.

        Args:
            checkpoint: whole, whatever number of processes trains.
            score: of these weights, where a validation measured it; larger is better.

        Raises:
            SaveFailed: nothing half-written stays and the former checkpoints are untouched.
            NotFinite: something in it is not finite: such a state must not replace a good one.
        """
        _require_finite(checkpoint)
        final = self.folder / f"step-{checkpoint.step}"
        try:
            durable.clear(self.folder)
            self.require_space()
            durable.commit(final, lambda folder: _write(folder, checkpoint), {"step": checkpoint.step})
            self.needed = sum(path.stat().st_size for path in final.iterdir())
            self._damaged.discard(checkpoint.step)
            self._note_best(checkpoint, score)
            self._drop()
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SaveFailed(self._no_room(f"cannot save {final}: {reason}", _free(self.folder))) from error
        return final

    def attempt(self, checkpoint: Checkpoint, score: float | None = None) -> bool:
        """Saves if the disk lets it; a failure is a warning, and the next call tries again.

        Raises:
            SaveFailed: the third failure in a row.
            NotFinite: as `save`.
        """
        try:
            self.save(checkpoint, score)
        except SaveFailed as error:
            self._failures += 1
            if self._failures >= _MAX_FAILURES:
                raise SaveFailed(f"{error}; {self._failures} checkpoints in a row failed") from error
            warnings.warn(f"{error}; training goes on and tries again", stacklevel=2)
            return False
        self._failures = 0
        return True

    def newest(self) -> Path:
        """The newest checkpoint that is whole; each damaged one on the way is named in a warning.

        Raises:
            UserError: there is no checkpoint, none is whole, or a newer version wrote it.
        """
        durable.clear(self.folder)
        steps = self.steps()
        for step in reversed(steps):
            path = self.folder / f"step-{step}"
            reason = durable.damage(path)
            if reason is None:
                return path
            self._damaged.add(step)
            warnings.warn(f"{path} is damaged ({reason}); trying the one before", stacklevel=2)
        if not steps:
            raise UserError(f"--resume: expected checkpoints in {self.folder}, found none")
        raise UserError(f"--resume: every checkpoint in {self.folder} is damaged; start anew without --resume")

    def load_latest(self) -> Checkpoint:
        """What `newest` names, read; raises as it does."""
        return read(self.newest())

    def best(self) -> Best | None:
        """The checkpoint with the best validation, if one was saved with it and is still there."""
        try:
            record = json.loads((self.folder / _BEST).read_text(encoding="utf-8"))
            best = Best(int(record["step"]), int(record["stage"]), float(record["score"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return best if best.step in self.steps() else None

    def load_best(self, stage: int) -> Checkpoint | None:
        """The best checkpoint of a stage; None, and a warning where it is damaged, if there is none to be read."""
        best = self.best()
        if best is None or best.stage != stage:
            return None
        path = self.folder / f"step-{best.step}"
        reason = durable.damage(path)
        if reason is not None:
            warnings.warn(f"the best checkpoint {path} is damaged ({reason}); taking the last", stacklevel=2)
            return None
        return read(path)

    def is_better(self, score: float, step: int, stage: int) -> bool:
        """Whether a validation is the best of its stage. The scores of two stages cannot be compared."""
        best = self.best()
        if math.isnan(score):
            return False
        return best is None or best.stage != stage or score > best.score or step <= best.step  # that one is made anew

    def _note_best(self, checkpoint: Checkpoint, score: float | None) -> None:
        stage = int(checkpoint.state.get("progress", {}).get("stage", 0))
        if score is not None and self.is_better(score, checkpoint.step, stage):
            record = {"step": checkpoint.step, "stage": stage, "score": score}
            durable.replace_file(self.folder / _BEST, json.dumps(record) + "\n")

    def _drop(self) -> None:
        """Damaged ones go as soon as there is a newer whole one, and do not count among those that stay."""
        best = self.best()
        whole = [step for step in self.steps() if step not in self._damaged]
        stay = {*whole[-self.keep :], *([best.step] if best else [])}
        for step in self.steps():
            if step not in stay:
                durable.discard(self.folder / f"step-{step}")

    def _no_room(self, reason: str, free: int) -> str:
        steps = self.steps()
        kept = f"step {steps[-1]} is kept, continue with --resume" if steps else "nothing is kept yet"
        return (
            f"{reason}; {self.folder}: expected {_HEADROOM * self.needed / 2**20:.1f} MiB of free space, "
            f"got {free / 2**20:.1f}; make room; {kept}"
        )


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint whose folder was found whole.

    Raises:
        UserError: it holds anything but tensors and plain values.
    """
    state = load_tensors(path / STATE, "tensors and plain values")
    if not isinstance(state, dict):
        raise UserError(f"{path / STATE}: expected a dictionary, got {type(state).__name__}")
    return Checkpoint(int(path.name.removeprefix("step-")), load_weights(path / WEIGHTS), state)


def shared(saved: Checkpoint | None) -> Checkpoint | None:
    """What the first process read, on all of them; the tensors stay with the first one."""
    if distributed.world_size() == 1:
        return saved
    sent = saved and replace(saved, weights=distributed.outline(saved.weights), state=distributed.outline(saved.state))
    received = distributed.from_first(sent)
    return saved if distributed.rank() == 0 else received


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    write_weights(folder / WEIGHTS, checkpoint.weights)
    # An open file: a full disk is an OSError here, not PyTorch's "unexpected pos".
    with open(folder / STATE, "wb") as file:
        torch.save(checkpoint.state, file)


def _require_finite(checkpoint: Checkpoint) -> None:
    """Looks at weights and at everything the optimizer and the average keep; one wait for the device."""
    named = {**checkpoint.weights, **{f"{STATE} {place}": t for place, t in enumerate(tensors_in(checkpoint.state))}}
    named = {name: tensor for name, tensor in named.items() if tensor.is_floating_point() and tensor.numel()}
    if not named:
        return
    device = next(iter(named.values())).device
    finite = torch.stack([tensor.detach().isfinite().all().to(device, non_blocking=True) for tensor in named.values()])
    if not finite.all():
        broken = next(name for name, good in zip(named, finite.tolist(), strict=True) if not good)
        raise NotFinite(
            f"checkpoint: expected finite values at step {checkpoint.step}, got NaN or infinity in {broken}; "
            "lower the learning rate"
        )


def _free(folder: Path) -> int:
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
