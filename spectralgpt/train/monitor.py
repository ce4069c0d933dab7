# SPDX-License-Identifier: Apache-2.0
"""What a run tells: metrics.jsonl, TensorBoard, the progress bar and the validation table.

metrics.jsonl holds one row per step and per validation and only numbers that seed, data and recipe decide, so a
resumed run's file equals the uninterrupted one's byte for byte (`cmp` shows it). Speed depends on the day and
goes to the bar and to TensorBoard. Numbers stay on the device until `flush`, so that no step waits for a copy.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from spectralgpt.data.loader import Key
from spectralgpt.train import distributed
from spectralgpt.train.boards import Boards
from spectralgpt.train.config import RunConfig, StageConfig
from spectralgpt.train.durable import replace_file
from spectralgpt.train.folder import RunFolder
from spectralgpt.train.run import Progress, Run
from spectralgpt.train.speed import Speed
from spectralgpt.train.tasks import TASKS
from spectralgpt.train.tasks.base import Result

T = TypeVar("T")


class Monitor:
    """The open outputs of one run; `with` closes them."""

    def __init__(self, folder: RunFolder, progress: Progress, config: RunConfig) -> None:
        """Continues after `progress`: rows beyond it were written by a killed run and will be written again."""
        keep_rows(folder.metrics, progress.step)
        self._rows = open(folder.metrics, "a", encoding="utf-8")
        self._boards = Boards(folder.tensorboard, config, progress.step + 1)
        self._bar = tqdm(
            total=sum(stage.steps * stage.batch_size * stage.accumulate for stage in config.stages),
            initial=progress.samples,
            unit=" samples",
            disable=distributed.rank() > 0,
            file=sys.stderr,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            bar_format="{desc}: {percentage:3.0f}%|{bar:24}| {rate_fmt}, {remaining} left{postfix}",
        )
        self._task = TASKS[config.task]
        self._measured = (*self._task.measured, "gradient_norm")
        self._pending: list[tuple[dict[str, Any], Tensor, Callable[[], list[Key]]]] = []
        self._speed: Speed | None = None
        self._has_header = False
        self.streak: list[dict[str, Any]] = []

    def __enter__(self) -> Monitor:
        """Nothing is opened here; see `__init__`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes file, board and bar."""
        self._bar.close()
        self._boards.close()
        self._rows.close()

    def watch(self, batches: Iterator[T], run: Run) -> Iterator[T]:
        """Starts the meter of the run's current stage; returns its batches, timed."""
        flops = run.task.flops(run.model.config, run.stage)
        processes = distributed.world_size()
        self._speed = Speed(flops, run.device, run.dtype, samples=run.progress.samples, processes=processes)
        return self._speed.watch(batches)

    def record(
        self, progress: Progress, stage: StageConfig, lr: float, measured: Tensor, keys: Callable[[], list[Key]] = list
    ) -> None:
        """Keeps a finished step's numbers.

        Args:
            progress: after the step.
            stage: that it belongs to.
            lr: its learning rate.
            measured: a vector of what the task measures and the gradient norm, which stays on its device.
            keys: gives the step's samples, should they be asked for.
        """
        row = {**_place(progress, stage), "samples": progress.samples, "lr": lr}
        self._pending.append((row, measured, keys))
        self._bar.update(progress.samples - self._bar.n)

    def flush(self) -> None:
        """Brings the kept numbers to the host and writes them."""
        if not self._pending:
            return
        rows, measured, keys = zip(*self._pending, strict=True)
        values = torch.stack(measured).tolist()
        self._pending.clear()
        for row, numbers, samples in zip(rows, values, keys, strict=True):
            plain = [number if math.isfinite(number) else None for number in numbers]  # JSON knows no NaN
            row.update(zip(self._measured, plain, strict=True))
            if None in plain:
                row.update(skipped=True, sample_ids=[index for _, index in samples()])
                self.streak.append(row)
            else:
                self.streak.clear()
            self._write(row)
            curves = {f"train/{name}": number for name, number in zip(self._measured, numbers, strict=True)}
            self._boards.scalars({**curves, "train/lr": row["lr"]}, row["step"])
        self._bar.set_description_str(str(rows[-1]["stage"]), refresh=False)
        told = [f"loss {values[-1][0]:.4f}"]
        if self._speed is not None:
            reading = self._speed.read(rows[-1]["samples"])
            self._boards.scalars(
                {f"speed/{name}": value for name, value in dataclasses.asdict(reading).items()}, rows[-1]["step"]
            )
            told.append(str(reading))
        self._bar.set_postfix_str(", ".join(told), refresh=False)

    def validation(self, progress: Progress, stage: StageConfig, result: Result, figure: Path) -> None:
        """Writes a validation's numbers and prints them as a line of the table."""
        self._write({**_place(progress, stage), **_json(result.numbers), **_json(result.details)})
        curves = {f"validation/{name.removeprefix('validation_')}": number for name, number in result.numbers.items()}
        self._boards.scalars(curves, progress.step)
        if not self._has_header:
            about, columns = result.header
            self.say(about)
            self.say(f"    step  {'stage':14}{columns}")
            self._has_header = True
        self.say(f"{progress.step:8}  {stage.name:14}{result.line}   {figure}")

    def figure(self, progress: Progress, path: Path) -> None:
        """Shows a validation's figure, once it is drawn, on the boards."""
        self._boards.figure(f"validation/{self._task.figure}", path, progress.step)
        if self._speed is not None:
            self._speed.read(progress.samples)  # a validation is no part of the speed

    def rolled_back(self, progress: Progress, stage: StageConfig, streak: list[dict[str, Any]]) -> None:
        """Notes, ahead of the steps that are made anew, which ones were given up and the samples they had."""
        samples = [index for row in streak for index in row["sample_ids"]]
        row = {**_place(progress, stage), "rolled_back_from": streak[-1]["step"], "sample_ids": samples}
        self._write({**row, "step": progress.step + 1})

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        self._bar.write(line, file=sys.stdout)

    def sync(self) -> None:
        """Everything recorded reaches the disk; called before a checkpoint of the same step is committed."""
        self.flush()
        self._rows.flush()
        os.fsync(self._rows.fileno())

    def _write(self, row: dict[str, Any]) -> None:
        self._rows.write(json.dumps(row) + "\n")
        self._rows.flush()


def _json(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows neither NaN nor infinity."""
    plain = {}
    for name, value in values.items():
        inner = _json(value) if isinstance(value, dict) else value
        plain[name] = None if isinstance(inner, float) and not math.isfinite(inner) else inner
    return plain


def _place(progress: Progress, stage: StageConfig) -> dict[str, Any]:
    return {"step": progress.step, "stage": stage.name}


def keep_rows(path: Path, step: int) -> None:
    """Drops the rows after `step`, and a line that a kill tore; the file is replaced in one piece."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line)
    replace_file(path, "".join(kept))
