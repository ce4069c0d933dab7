# SPDX-License-Identifier: Apache-2.0
"""The video example learns, is the same on every run, and stands on the ops and torch alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def video(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "video_mae", raising=False)
    import video_mae

    return video_mae


def test_loss_falls(video: ModuleType) -> None:
    _, losses = video.train(25, batch=8, report=0)
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < 0.6 * first
    assert video.train(25, batch=8, report=0)[1] == losses


def test_clips_move_and_stay_in_range(video: ModuleType) -> None:
    clips = video.moving_shapes(4, torch.Generator().manual_seed(0))
    assert clips.shape == (4, 24, 32, 32) and clips.min() >= 0 and clips.max() <= 1
    frames = clips.unflatten(1, (8, 3))
    assert ((frames[:, 1:] - frames[:, :-1]).abs().amax((2, 3, 4)) > 0.05).any(1).all()


def test_command_writes_a_picture_where_matplotlib_is(
    video: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    picture = tmp_path / "clip.png"
    assert video.main(["--steps", "2", "--picture", str(picture)]) == 0
    assert "in the last" in capsys.readouterr().out and picture.stat().st_size > 1000
    picture.unlink()
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    assert video.main(["--steps", "1", "--picture", str(picture)]) == 0 and not picture.exists()


def test_stands_on_the_ops_alone() -> None:
    text = (EXAMPLES / "video_mae.py").read_text(encoding="utf-8")
    imports = set(re.findall(r"^\s*(?:from|import) (\w+(?:\.\w+)?)", text, re.MULTILINE))
    assert imports <= {
        "__future__",
        "argparse",
        "importlib.util",
        "collections.abc",
        "torch",
        "spectralgpt",
        "matplotlib.pyplot",
    }
    assert re.findall(r"from spectralgpt import (.+)", text) == ["ops"]
