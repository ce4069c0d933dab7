# SPDX-License-Identifier: Apache-2.0
"""Curves and figures for people: TensorBoard always, Weights & Biases where the recipe names a project.

wandb is imported only then. Of several processes the first one reports to it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from spectralgpt.errors import UserError
from spectralgpt.train import distributed
from spectralgpt.train.config import RunConfig
from spectralgpt.viz.figures import read_figure


def require_wandb(config: RunConfig) -> None:
    """Raises a `UserError` where the recipe wants Weights & Biases and it is not installed."""
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb: expected the package wandb to report to, found none; pip install wandb, or wandb: null")


class Boards:
    """Where a run's numbers are drawn."""

    def __init__(self, folder: Path, config: RunConfig, first_step: int) -> None:
        """Opens the boards; what a killed run wrote from `first_step` on is hidden.

        Args:
            folder: for TensorBoard's files.
            config: the recipe; its `wandb` names a project or nothing.
            first_step: the next one to come.
        """
        self._tensorboard = SummaryWriter(str(folder), purge_step=first_step)
        self._wandb: Any = None
        self._run: Any = None
        if config.wandb is not None and distributed.rank() == 0:
            require_wandb(config)
            self._wandb = importlib.import_module("wandb")
            recipe = dataclasses.asdict(config)
            # The folder's name is the run's: a resumed one goes on with the same curves.
            name = folder.resolve().parent.name
            self._run = self._wandb.init(
                project=config.wandb, name=name, id=name, resume="allow", dir=str(folder.parent), config=recipe
            )
            self._run.define_metric("*", step_metric="step")  # steps done again after a kill do not offend it

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Adds a point to each named curve."""
        for name, number in numbers.items():
            self._tensorboard.add_scalar(name, number, step)
        if self._run is not None:
            self._run.log({**numbers, "step": step})

    def figure(self, name: str, path: Path, step: int) -> None:
        """Shows a PNG file."""
        self._tensorboard.add_image(name, read_figure(path), step, dataformats="HWC")
        if self._run is not None:
            self._run.log({name: self._wandb.Image(str(path)), "step": step})

    def close(self) -> None:
        """Everything reaches its place."""
        self._tensorboard.close()
        if self._run is not None:
            self._run.finish()
