# SPDX-License-Identifier: Apache-2.0
"""Curves and figures reach TensorBoard, and Weights & Biases only where a recipe asks for it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spectralgpt import cli
from spectralgpt.errors import UserError
from spectralgpt.train.boards import Boards, require_wandb
from spectralgpt.train.config import RunConfig


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from matplotlib.image import imsave

    path = tmp_path / "figure.png"
    imsave(path, np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    return path


class Wandb(ModuleType):
    """What is used of wandb, noting what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.told, self.settings, self.finished = [], {}, False
        self.__spec__ = SimpleNamespace(name="wandb")

    def init(self, **settings: object) -> Wandb:
        self.settings = settings
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.settings["metric"] = (name, step_metric)

    def log(self, numbers: dict[str, object]) -> None:
        self.told.append(numbers)

    def Image(self, path: str) -> str:
        return f"image of {path}"

    def finish(self) -> None:
        self.finished = True


def test_tensorboard_holds_curves_and_figures(tmp_path: Path, picture: Path) -> None:
    boards = Boards(tmp_path / "run" / "tensorboard", RunConfig(), 1)
    for step in (1, 2):
        boards.scalars({"train/loss": 1 / step, "train/lr": 0.1}, step)
    boards.figure("validation/reconstruction", picture, 2)
    boards.close()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    (image,) = events.Images("validation/reconstruction")
    assert (image.step, image.height, image.width) == (2, 20, 30)


def test_wandb_is_told_the_same(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    boards = Boards(tmp_path / "mine" / "tensorboard", replace(RunConfig(), wandb="clouds"), 1)
    boards.scalars({"train/loss": 0.5}, 3)
    boards.figure("validation/reconstruction", picture, 3)
    boards.close()
    assert wandb.settings["project"] == "clouds"
    assert wandb.settings["name"] == wandb.settings["id"] == "mine", "a resumed run goes on with the same curves"
    assert wandb.settings["config"]["stages"][0]["image_size"] == 96
    assert wandb.settings["metric"] == ("*", "step")
    assert wandb.told[0] == {"train/loss": 0.5, "step": 3}
    assert wandb.told[1]["validation/reconstruction"] == f"image of {picture}"
    assert wandb.finished


def test_wandb_is_not_imported_without_being_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    Boards(tmp_path / "run" / "tensorboard", RunConfig(), 1).close()


def test_a_missing_wandb_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install wandb, or wandb: null"):
        require_wandb(replace(RunConfig(), wandb="clouds"))
    assert cli.main(["train", "--output", str(tmp_path / "runs"), "--wandb", "clouds"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "wandb: expected the package wandb" in line
    assert list(tmp_path.iterdir()) == []
