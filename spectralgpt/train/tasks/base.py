# SPDX-License-Identifier: Apache-2.0
"""What a run trains, behind one small face: everything that loop, step, run and stages do not know.

A `Task` lives as long as the run and says which images, model and first weights; for each stage it gives an
`Objective`, which turns a piece of a step's samples into gradients, and a `Validation`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from spectralgpt.data.source import Source
from spectralgpt.models.base import SpectralModel
from spectralgpt.models.config import ModelConfig
from spectralgpt.train import distributed
from spectralgpt.train.config import RunConfig, StageConfig

if TYPE_CHECKING:
    from spectralgpt.train.run import Run

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Result:
    """What a validation found.

    Attributes:
        numbers: by name, for metrics.jsonl and the curves; the loss is called `validation_loss`.
        details: more for metrics.jsonl: counts, tables.
        score: what the best checkpoint is chosen by; larger is better, NaN where nothing could be scored.
        header: lines above the printed table.
        line: of the table, without step and stage.
    """

    numbers: Mapping[str, float]
    details: Mapping[str, Any]
    score: float
    header: tuple[str, str]
    line: str


class Validation(ABC):
    """The held-out images of one stage."""

    @abstractmethod
    def measure(self, model: SpectralModel) -> Result:
        """Numbers over all of them, the last incomplete batch included; draws from no generator."""

    @abstractmethod
    def draw(self, model: SpectralModel, path: Path, title: str) -> None:
        """Writes a figure of some of them."""


class Objective(ABC):
    """The forward and backward passes of one stage.

    Attributes:
        num_sums: how many numbers a pass gives, that add up over pieces and processes.
    """

    num_sums: ClassVar[int]

    def __init__(self, run: Run, place: Tensor) -> None:
        """For the stage that `run` is in; `place` is a 0-d tensor on the device with the number of the step."""
        self._run, self._place = run, place
        self._unit = torch.ones((), device=run.device)
        self._share = distributed.world_size() / run.stage.windows_per_step  # DDP and FSDP2 take the mean of gradients

    @abstractmethod
    def inputs(self, batch: Batch, number: int) -> Batch:
        """What `forward_backward` takes, for a batch on the device, the `number`-th of the step on this process."""

    @abstractmethod
    def forward_backward(self, **piece: Tensor) -> Tensor:
        """Adds the gradient of a piece, carrying its share of the step; gives the sums, (num_sums,), on the device."""

    @abstractmethod
    def measured(self, sums: Tensor) -> Tensor:
        """The numbers behind `Task.measured`, the loss first, from the sums of a whole step."""


class Task(ABC):
    """One kind of training.

    Attributes:
        measured: names of what is measured in every step, the loss first.
        figure: what a validation's figure shows.
        selects: the best checkpoint of the last stage is exported, not the last.
        labelled: batches come with labels, and the dates of a pair together.
        config: the recipe.
        notes: what the user should know before the first step, one line each.
    """

    measured: ClassVar[tuple[str, ...]]
    figure: ClassVar[str]
    selects: ClassVar[bool] = False
    labelled: ClassVar[bool] = False

    def __init__(self, config: RunConfig, state: dict[str, Any] | None = None) -> None:
        """For a recipe; `state` is what the task of a checkpoint kept."""
        self.config = config
        self.notes: list[str] = []

    @property
    def state(self) -> dict[str, Any]:
        """Plain values that a resumed run cannot, or should not, find out again."""
        return {}

    @abstractmethod
    def open(self, index: int, split: Literal["train", "val"]) -> Source:
        """One side of the images of a stage, given by its place.

        Raises:
            UserError: they do not fit the recipe.
        """

    @abstractmethod
    def model_config(self, source: Source, stage: StageConfig) -> ModelConfig:
        """The model of a stage, for its training images."""

    @abstractmethod
    def build(self, config: ModelConfig) -> SpectralModel:
        """The model, its weights drawn from the default generator, or without any on the meta device."""

    @abstractmethod
    def fresh(self, config: ModelConfig, seed: int) -> SpectralModel:
        """The model with weights that are a function of the seed and nothing else."""

    def first(self, config: ModelConfig, seed: int) -> SpectralModel:
        """The model a run begins with."""
        return self.fresh(config, seed)

    @abstractmethod
    def objective(self, run: Run, place: Tensor) -> Objective:
        """The passes of the stage that `run` is in."""

    @abstractmethod
    def validation(self, run: Run) -> Validation:
        """The held-out images of the stage that `run` is in."""

    @abstractmethod
    def flops(self, config: ModelConfig, stage: StageConfig) -> float:
        """Of a training step, per sample."""
