# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl: one row per step, JSON that every reader takes, and cut back to the checkpoint on resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from spectralgpt.models.reconstruction import BandError, Reconstruction
from spectralgpt.train.config import RunConfig
from spectralgpt.train.folder import RunFolder
from spectralgpt.train.monitor import Monitor, keep_rows
from spectralgpt.train.run import Progress
from spectralgpt.train.tasks.reconstruction import result_of

CONFIG = RunConfig()


def record(monitor: Monitor, step: int, loss: float, norm: float = 1.0) -> None:
    progress = Progress(step=step, stage_step=step, samples=8 * step)
    monitor.record(progress, CONFIG.stages[0], 0.1, torch.tensor([loss, 0.2, 0.3, norm]))


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_rows_wait_for_flush_and_hold_every_step(tmp_path: Path) -> None:
    with Monitor(RunFolder(tmp_path), Progress(), CONFIG) as monitor:
        for step in (1, 2, 3):
            record(monitor, step, 1 / step)
        assert (tmp_path / "metrics.jsonl").read_text() == ""
        monitor.sync()
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    first = rows(tmp_path / "metrics.jsonl")[0]
    assert set(first) == {"step", "stage", "samples", "lr", "loss", "token_loss", "spectral_loss", "gradient_norm"}
    assert first["loss"] == 1.0


def test_skipped_steps_are_marked_counted_in_a_row_and_never_written_as_nan(tmp_path: Path) -> None:
    with Monitor(RunFolder(tmp_path), Progress(), CONFIG) as monitor:
        for step, (loss, norm) in enumerate([(math.nan, 1.0), (1.0, 1.0), (1.0, math.inf), (-math.inf, 1.0)], start=1):
            record(monitor, step, loss, norm)
        monitor.flush()
        assert [row["step"] for row in monitor.streak] == [3, 4]
    found = rows(tmp_path / "metrics.jsonl")
    assert [row.get("skipped", False) for row in found] == [True, False, True, True]
    assert (found[0]["loss"], found[2]["gradient_norm"], found[2]["loss"]) == (None, None, 1.0)


def test_a_validation_is_a_row_and_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = Reconstruction(psnr=22.456, psnr_nearest=20.6, psnr_mean=21.9, loss=0.01, windows=7)
    with Monitor(RunFolder(tmp_path), Progress(), CONFIG) as monitor:
        monitor.validation(Progress(step=4), CONFIG.stages[0], result_of(result), tmp_path / "figures" / "step-4.png")
    (row,) = rows(tmp_path / "metrics.jsonl")
    assert (row["step"], row["psnr"], row["psnr_nearest"], row["psnr_mean"], row["windows"]) == (
        4,
        22.456,
        20.6,
        21.9,
        7,
    )
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[:5] == ["4", "train", "22.46", "20.60", "21.90"]
    assert (row["ssim"], row["bands"]) == (None, {}), "JSON knows no NaN"


def test_the_errors_of_bands_are_in_the_row(tmp_path: Path) -> None:
    bands = {"B02": BandError(30.0, 0.9, 55.5, 4.0), "B03": BandError(math.inf, 1.0, 0.0, math.nan)}
    result = Reconstruction(22.0, 20.0, 21.0, 0.01, 7, ssim=0.8, sam=3.5, ergas=4.2, bands=bands)
    with Monitor(RunFolder(tmp_path), Progress(), CONFIG) as monitor:
        monitor.validation(Progress(step=4), CONFIG.stages[0], result_of(result), tmp_path / "step-4.png")
    (row,) = rows(tmp_path / "metrics.jsonl")
    assert (row["ssim"], row["sam"], row["ergas"]) == (0.8, 3.5, 4.2)
    assert row["bands"] == {
        "B02": {"psnr": 30.0, "ssim": 0.9, "rmse": 55.5, "relative": 4.0},
        "B03": {"psnr": None, "ssim": 1.0, "rmse": 0.0, "relative": None},
    }


def test_resume_drops_later_rows_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 2, "psnr": 9.0}\n'
    path.write_text(kept + '{"step": 3, "loss": 0.4}\n{"step": 4, "lo')
    keep_rows(path, 2)
    assert path.read_text() == kept
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.jsonl"]
