# SPDX-License-Identifier: Apache-2.0
"""What a run tells: metrics.jsonl, TensorBoard, the progress bar and the validation table.

metrics.jsonl holds one row per step and per validation and only numbers that seed, data and recipe decide, so a
resumed run's file equals the uninterrupted one's byte for byte (`cmp` shows it). Speed depends on the day and
goes to the bar and to TensorBoard. Numbers stay on the device until `flush`, so that no step waits for a copy.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from spectralgpt.train.config import RunConfig, StageConfig
from spectralgpt.train.folder import RunFolder
from spectralgpt.train.metrics import Reconstruction
from spectralgpt.train.run import Progress

MEASURED = ("loss", "token_loss", "spectral_loss", "gradient_norm")
"""What `Monitor.record` takes per step, in this order."""


class Monitor:
    """The open outputs of one run; `with` closes them."""

    def __init__(self, folder: RunFolder, progress: Progress, config: RunConfig) -> None:
        """Continues after `progress`: rows beyond it were written by a killed run and will be written again."""
        keep_rows(folder.metrics, progress.step)
        self._rows = open(folder.metrics, "a", encoding="utf-8")
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=progress.step + 1)
        self._bar = tqdm(
            total=sum(stage.steps * stage.batch_size * stage.accumulate for stage in config.stages),
            initial=progress.samples,
            unit=" samples",
            file=sys.stderr,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            bar_format="{desc}: {percentage:3.0f}%|{bar:24}| {rate_fmt}, {remaining} left{postfix}",
        )
        self._pending: list[tuple[dict[str, Any], Tensor]] = []
        self._flushed = (time.perf_counter(), progress.samples)
        self._has_header = False
        self.skipped_in_a_row = 0

    def __enter__(self) -> Monitor:
        """Nothing is opened here; see `__init__`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes file, board and bar."""
        self._bar.close()
        self._board.close()
        self._rows.close()

    def record(self, progress: Progress, stage: StageConfig, lr: float, measured: Tensor) -> None:
        """Keeps a finished step's numbers; `measured` is a vector of `MEASURED` and stays on its device."""
        self._pending.append(({**_place(progress, stage), "samples": progress.samples, "lr": lr}, measured))
        self._bar.update(progress.samples - self._bar.n)

    def flush(self) -> None:
        """Brings the kept numbers to the host and writes them."""
        if not self._pending:
            return
        rows = [row for row, _ in self._pending]
        values = torch.stack([measured for _, measured in self._pending]).tolist()
        self._pending.clear()
        for row, numbers in zip(rows, values, strict=True):
            skipped = not all(map(math.isfinite, numbers))
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
            plain = [number if math.isfinite(number) else None for number in numbers]  # JSON knows no NaN
            self._write({**row, **dict(zip(MEASURED, plain, strict=True)), **({"skipped": True} if skipped else {})})
            for name, number in (*zip(MEASURED, numbers, strict=True), ("lr", row["lr"])):
                self._board.add_scalar(f"train/{name}", number, row["step"])
        now, samples = time.perf_counter(), rows[-1]["samples"]
        self._board.add_scalar(
            "speed/samples_per_second", (samples - self._flushed[1]) / (now - self._flushed[0]), rows[-1]["step"]
        )
        self._flushed = (now, samples)
        self._bar.set_description_str(str(rows[-1]["stage"]), refresh=False)
        self._bar.set_postfix_str(f"loss {values[-1][0]:.4f}", refresh=False)

    def validation(self, progress: Progress, stage: StageConfig, result: Reconstruction, figure: Path) -> None:
        """Writes a validation's numbers and prints them as a line of the table."""
        numbers = {
            "validation_loss": result.loss,
            "psnr": result.psnr,
            "psnr_nearest": result.psnr_nearest,
            "psnr_mean": result.psnr_mean,
        }
        self._write({**_place(progress, stage), **numbers, "windows": result.windows})
        for name, number in numbers.items():
            self._board.add_scalar(f"validation/{name.removeprefix('validation_')}", number, progress.step)
        if not self._has_header:
            self.say("PSNR of hidden tokens in held-out windows, dB")
            self.say("    step  stage             model   nearest      mean")
            self._has_header = True
        psnr = f"{result.psnr:8.2f}  {result.psnr_nearest:8.2f}  {result.psnr_mean:8.2f}"
        self.say(f"{progress.step:8}  {stage.name:14}{psnr}   {figure}")

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
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
