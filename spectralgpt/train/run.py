# SPDX-License-Identifier: Apache-2.0
"""What the loop moves forward (data, model, optimizer, progress), and how it becomes a checkpoint and back.

All stages' images are opened before anything is trained, so a window that does not fit stage three is told now,
not in a week. Training state crosses every boundary, a restart or the next stage, as a `Snapshot` of whole
tensors; `device.place` is the only way from there onto the device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import AdamW

from spectralgpt.data.source import Source
from spectralgpt.errors import UserError
from spectralgpt.models.base import SpectralModel
from spectralgpt.train import distributed, stages
from spectralgpt.train.boards import require_wandb
from spectralgpt.train.checkpoint import Checkpoint
from spectralgpt.train.config import RunConfig, StageConfig
from spectralgpt.train.device import matrix_dtype, place, set_up_torch
from spectralgpt.train.ema import AVERAGE, averaged
from spectralgpt.train.passes import Passes, choose, memory_of
from spectralgpt.train.recipe import to_yaml
from spectralgpt.train.stages import Snapshot
from spectralgpt.train.tasks import TASKS
from spectralgpt.train.tasks.base import Task


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        stage: place of the current stage.
        stage_step: optimizer steps done in it.
        step: optimizer steps done in the run.
        samples: windows consumed in the run.
        micro_batch: windows per forward pass since memory ran out in this stage; 0 is as configured.
        passed_over: windows of a stage, by its place, that going back after trouble left out.
    """

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    samples: int = 0
    micro_batch: int = 0
    passed_over: dict[int, int] = field(default_factory=dict)

    def advance(self, samples: int) -> None:
        """One optimizer step over `samples` windows is done."""
        self.stage_step += 1
        self.step += 1
        self.samples += samples

    def pass_over(self, bad: Progress, windows_per_step: int) -> None:
        """Leaves out what came since here up to `bad`, in the stage that was reached there."""
        done = self.stage_step if self.stage == bad.stage else 0
        again = (bad.stage_step - done) * windows_per_step
        self.passed_over = {**bad.passed_over, bad.stage: bad.passed_over.get(bad.stage, 0) + again}


@dataclass
class Run:
    """Everything a loop needs but the outputs.

    Attributes:
        recipe: as it was given.
        config: the same with every stage's steps known.
        device: where this process computes.
        windows: (training, validation) of each stage.
        all_passes: how the windows of each stage go through the device.
        progress: where the run stands.
        task: what is trained.
        model: of the current stage.
        wrapped: the same, or DDP around it; what a training step calls.
        optimizer: of the current stage.
        scaler: of fp16 losses; switched off at other precisions.
    """

    recipe: RunConfig
    config: RunConfig
    device: torch.device
    windows: list[tuple[Source, Source]]
    all_passes: list[Passes]
    progress: Progress
    task: Task
    model: SpectralModel
    wrapped: nn.Module
    optimizer: AdamW
    scaler: GradScaler

    @property
    def stage(self) -> StageConfig:
        """The current stage."""
        return self.config.stages[self.progress.stage]

    @property
    def passes(self) -> Passes:
        """Those of the current stage."""
        return self.all_passes[self.progress.stage]

    @property
    def micro_batch(self) -> int:
        """Windows in a pass of this process, after what memory has taught."""
        return min(self.passes.micro_batch, self.progress.micro_batch or self.passes.micro_batch)

    @property
    def first_sample(self) -> int:
        """Where the current stage is in the order of its data: each stage begins with an epoch of its own."""
        done = self.progress.stage_step * self.stage.windows_per_step
        count = len(self.windows[self.progress.stage][0])
        passed_over = self.progress.passed_over.get(self.progress.stage, 0)
        return -(-(self.progress.samples - done) // count) * count + done + passed_over

    def enter_stage(self, index: int) -> None:
        """Goes to a stage's start, or stays in the one a checkpoint was in."""
        if index == self.progress.stage:
            return
        before, old = self.snapshot(), self.model.config
        self.progress.stage, self.progress.stage_step, self.progress.micro_batch = index, 0, 0
        source = self.windows[index][0]
        new = self.task.model_config(source, self.stage)
        fresh = stages.untrained(self.task.fresh(new, self.config.seed + index))
        self._take(stages.enter(before, old, new, source.card, self.stage, fresh, self.task.build))

    def rewind(self, saved: Checkpoint) -> None:
        """Goes back to a checkpoint of this run."""
        self.progress = Progress(**saved.state["progress"])
        self._take(Snapshot(saved.weights, saved.state["optimizer"]))
        self.restore_generators(saved)

    def restore_generators(self, saved: Checkpoint) -> None:
        """What a checkpoint holds beside weights and moments."""
        if self.scaler.is_enabled() and saved.state["scaler"]:
            self.scaler.load_state_dict(saved.state["scaler"])
        if len(saved.state["generators"]) == distributed.world_size():
            self.set_generators(saved.state["generators"][distributed.rank()])

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in; weights and moments are float32 in any case."""
        return matrix_dtype(self.config, self.device)

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def generators(self) -> tuple[Tensor, Tensor | None]:
        """The state of this process's generators; drop path draws from them, data and masks do not."""
        return torch.get_rng_state(), torch.cuda.get_rng_state() if self.device.type == "cuda" else None

    def set_generators(self, states: tuple[Tensor, Tensor | None]) -> None:
        """The inverse of `generators`."""
        torch.set_rng_state(states[0])
        if states[1] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1])

    def snapshot(self) -> Snapshot:
        """Weights and moments as whole tensors; all processes take part."""
        weights = {name: distributed.whole(tensor) for name, tensor in self.model.state_dict().items()}
        moments: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments.setdefault(key, {})[name] = distributed.whole(value)
        return Snapshot(weights, moments)

    def checkpoint(self) -> Checkpoint:
        """The state after a finished step; all processes take part, rank 0 gets the values."""
        snapshot = self.snapshot()
        state = {
            "progress": asdict(self.progress),
            "optimizer": snapshot.moments,
            "generators": distributed.from_all(self.generators()),  # one per process
            "scaler": self.scaler.state_dict(),
            "task": self.task.state,
            "config": yaml.safe_load(to_yaml(self.recipe)),
        }
        return Checkpoint(self.progress.step, snapshot.weights, state)

    def checkpoint_bytes(self) -> int:
        """About what a checkpoint takes: weights and as much for each moment."""
        copies = 3 if self.config.ema is None else 4
        return copies * sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    def export(self, folder: Path, chosen: Checkpoint | None = None) -> None:
        """Writes the model for `spectralgpt.from_pretrained`; all processes take part.

        Args:
            folder: of the model.
            chosen: a checkpoint of this stage to take the weights from; the present ones by default.
        """
        snapshot, model = self.snapshot(), self.model
        if chosen is not None:
            snapshot = Snapshot(chosen.weights, chosen.state["optimizer"])
        weights = averaged(snapshot.weights, snapshot.moments)
        if distributed.rank() == 0:
            model.save_pretrained(folder, weights)

    def _take(self, snapshot: Snapshot) -> None:
        source = self.windows[self.progress.stage][0]
        self.model = _without_weights(self.task, source, self.stage)
        self.wrapped, self.optimizer = place(self.config, self.model, self.device, snapshot, self.passes.recompute)


def prepare(config: RunConfig, saved: Checkpoint | None) -> Run:
    """Opens the data of all stages and builds the model, with its first weights or those of a checkpoint.

    Raises:
        UserError: images or a number of processes that do not fit the recipe, or a checkpoint of another model.
    """
    require_wandb(config)
    device = set_up_torch(config)
    progress = Progress(**saved.state["progress"]) if saved else Progress()
    task = TASKS[config.task](config, saved.state.get("task") if saved else None)
    windows = [_opened(task, index) for index in range(len(config.stages))]
    memory = memory_of(device)
    models = [task.model_config(train, stage) for (train, _), stage in zip(windows, config.stages, strict=True)]
    recipe, fitted = config, [_fitted(config, index, len(train)) for index, (train, _) in enumerate(windows)]
    config = replace(recipe, stages=fitted)
    passes = [choose(config, stage, model, memory) for stage, model in zip(config.stages, models, strict=True)]
    source, stage = windows[progress.stage][0], config.stages[progress.stage]
    if saved is None:
        snapshot = stages.untrained(task.first(task.model_config(source, stage), config.seed))
    else:
        snapshot = Snapshot(saved.weights, saved.state["optimizer"])
        if config.ema is None:
            snapshot.moments.pop(AVERAGE, None)
    scaler = GradScaler(device.type, enabled=matrix_dtype(config, device) == torch.float16)
    model = _without_weights(task, source, stage)
    wrapped, optimizer = place(config, model, device, snapshot, passes[progress.stage].recompute)
    run = Run(recipe, config, device, windows, passes, progress, task, model, wrapped, optimizer, scaler)
    torch.manual_seed((config.seed + (distributed.rank() << 32) + (progress.step << 40)) % 2**63)
    if saved is not None:
        run.restore_generators(saved)
    return run


def _opened(task: Task, index: int) -> tuple[Source, Source]:
    """The images of a stage; what is wrong with them names it."""
    try:
        return task.open(index, "train"), task.open(index, "val")
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith("stages.") else f"stages.{index}: {text}") from error


def _without_weights(task: Task, source: Source, stage: StageConfig) -> SpectralModel:
    with torch.device("meta"):
        model = task.build(task.model_config(source, stage))
    model.normalization = source.normalization
    return model


def _fitted(config: RunConfig, index: int, count: int) -> StageConfig:
    """A stage with its epochs turned into steps, once it is known how many windows there are."""
    stage, key, processes = config.stages[index], f"stages.{index}", distributed.world_size()
    if stage.windows_per_step > count:
        raise UserError(
            f"{key}.batch_size: expected at most the {count} windows of {stage.image_size} pixels that the data holds "
            f"in an optimizer step, got {stage.batch_size} x {stage.accumulate}; lower batch_size or accumulate"
        )
    if stage.batch_size % processes:
        raise UserError(
            f"{key}.batch_size: expected a multiple of the {processes} processes, got {stage.batch_size}; "
            "start another number of processes"
        )
    steps = stage.epochs * count // stage.windows_per_step if stage.epochs else stage.steps
    warmup = stage.warmup_epochs * count // stage.windows_per_step if stage.warmup_epochs else stage.warmup_steps
    if warmup > steps:  # the learning rate would never reach its value
        raise UserError(
            f"{key}.warmup_{'epochs' if stage.warmup_epochs else 'steps'}: expected a warm-up of at most the stage's "
            f"{steps} steps, got {warmup} steps; shorten the warm-up"
        )
    return replace(stage, steps=steps, warmup_steps=warmup)
