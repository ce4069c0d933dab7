# SPDX-License-Identifier: Apache-2.0
"""What a run is: frozen dataclasses, one per component, checked before anything is written.

A recipe is YAML over these classes and nothing else (`train/recipe.py`), so a recipe from a stranger can name
values but never code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from spectralgpt.data.datasets.scene import DataConfig
from spectralgpt.errors import UserError
from spectralgpt.nn.block import Recompute
from spectralgpt.train.finetune_config import FinetuneConfig, HeadSection
from spectralgpt.train.model_section import ModelSection


@dataclass(frozen=True)
class SpeedConfig:
    """How the same arithmetic is brought to the hardware.

    Attributes:
        recompute: what the backward pass computes again instead of keeping it: nothing, GELU and LayerNorm, or
            whole blocks; the numbers stay the same. auto is the least with which a pretraining fits its GPU.
        compile: torch.compile; a minute before the first step.
        cuda_graph: replay forward and backward pass as one CUDA graph; for small models that wait for launches.
        parallel: how several processes share the work: each holds the whole model, or a part of it and of the
            optimizer (FSDP2), for models that do not fit.
    """

    recompute: Literal["auto"] | Recompute = "auto"
    compile: bool = False
    cuda_graph: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and what guards it.

    Attributes:
        betas: decay of the two running moments.
        weight_decay: for weights of two and more dimensions, as published; biases and norms are exempt.
        layer_decay: factor on the learning rate from each encoder block to the one before it; patch embedding and
            positions come before the first block, head and final norm have the full rate.
        clip_norm: largest gradient norm; null leaves gradients as they are.
        max_skipped: consecutive steps with a non-finite loss or gradient after which the run goes back; in fp16, which
            finds the scale of its loss so, 16 more.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    clip_norm: float | None = None
    max_skipped: int = 5


@dataclass(frozen=True)
class StageConfig:
    """One stage of progressive training: images, their size and a schedule of its own.

    Attributes:
        name: what the stage is called in logs.
        data: keys of `data` that differ in this stage.
        image_size: height and width of the training windows in pixels.
        steps: optimizer steps.
        epochs: passes over the data, instead of steps; 0 leaves it to `steps`.
        batch_size: windows read at a time, of all processes together.
        accumulate: of those, how many make an optimizer step.
        micro_batch: most windows in one forward pass of a process; null is its whole share of `batch_size`, or what
            the planner expects a GPU to hold of it. Fewer change nothing else; halved where memory runs out.
        lr: learning rate after the warm-up.
        schedule: how it falls to `min_lr` from there: half a cosine, (1 - done)^0.9, or by an equal factor per step.
        min_lr: learning rate at the end.
        warmup_steps: steps of linear warm-up, at most all of the stage.
        warmup_epochs: the same in passes over the data; 0 leaves it to `warmup_steps`.
        mask_ratio: share of tokens hidden from the encoder.
        optimizer: on entering, keep the moments (and the average of `ema`) of the stage before or start with none.
        positions: on entering, resample spatial positions for the new grid, or draw them anew as the published code
            does.
    """

    name: str = "train"
    data: DataConfig | None = None
    image_size: int = 96
    steps: int = 1000
    epochs: int = 0
    batch_size: int = 8
    accumulate: int = 1
    micro_batch: int | None = None
    lr: float = 1.5e-3
    schedule: Literal["cosine", "poly", "exponential"] = "cosine"
    min_lr: float = 0.0
    warmup_steps: int = 100
    warmup_epochs: int = 0
    mask_ratio: float = 0.9
    optimizer: Literal["carry", "fresh"] = "carry"
    positions: Literal["resample", "reinit"] = "resample"

    @property
    def windows_per_step(self) -> int:
        """Windows per optimizer step, of all processes together."""
        return self.batch_size * self.accumulate


@dataclass(frozen=True)
class RunConfig:
    """A whole run; its folder is `<output>/<name>`.

    Attributes:
        task: what is trained: pretrain rebuilds hidden tokens of images without labels; the others put a head on the
            encoder and learn from a data set's labels.
        name: the run's folder; if it is taken, a number is added.
        output: folder that holds the runs.
        seed: decides weights, crops, flips, order and masks.
        device: auto takes CUDA where there is one.
        precision: auto is bf16 autocast on CUDA and fp32 elsewhere; weights are fp32 in any case.
        deterministic: only deterministic kernels on CUDA, for runs that resume to the bit there.
        threads: CPU threads; null is PyTorch's choice. A run resumes to the bit at an equal number only.
        model: encoder and decoder.
        head: of tasks with labels.
        finetune: how these learn.
        data: the images.
        optim: the optimizer.
        speed: how it is computed.
        ema: share of the former average of the weights that stays after each step, such as 0.9999; that average is then
            validated and exported as the model. Null keeps none.
        stages: run one after another; weights and moments carry over, schedules start afresh.
        log_every: steps between two readings of the losses; every step's numbers are kept either way.
        validate_every: steps of a stage between validations; 0 validates only at a stage's end.
        validate_windows: most windows that a validation of a pretraining measures, spread over all that are held out.
        checkpoint_every: steps of a stage between checkpoints; 0 saves only at a stage's end.
        wandb: project of Weights & Biases to report to as well; needs `pip install wandb`.
        keep_checkpoints: newest checkpoints that stay, at least 2.
    """

    task: Literal["pretrain", "single_label", "multi_label", "segmentation", "change"] = "pretrain"
    name: str = "pretrain"
    output: str = "runs"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    deterministic: bool = False
    threads: int | None = None
    model: ModelSection = field(default_factory=ModelSection)
    head: HeadSection = field(default_factory=HeadSection)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    ema: float | None = None
    stages: list[StageConfig] = field(default_factory=lambda: [StageConfig()])
    log_every: int = 10
    validate_every: int = 1000
    validate_windows: int = 4096
    checkpoint_every: int = 1000
    wandb: str | None = None
    keep_checkpoints: int = 2

    def check(self) -> None:
        """Raises a `UserError` for values that cannot work together or make no sense on their own."""
        if not self.name or PurePath(self.name).name != self.name:
            raise UserError(f"name: expected a plain folder name, got {self.name!r}; folders above it go to `output`")
        if not self.stages:
            raise UserError("stages: expected at least one stage, got none")
        if min(patch := self.model.patch_size) < 1:
            raise UserError(f"model.patch_size: expected three numbers of at least 1, got {list(patch)}")
        for index, stage in enumerate(self.stages):
            self._check_stage(f"stages.{index}", stage)
        _at_least(1, log_every=self.log_every, max_skipped=self.optim.max_skipped, threads=self.threads)
        _at_least(1, validate_windows=self.validate_windows)
        _at_least(0, seed=self.seed, validate_every=self.validate_every, checkpoint_every=self.checkpoint_every)
        _at_least(2, keep_checkpoints=self.keep_checkpoints)  # the newest may be found damaged
        self._check_task()
        self._check_optim()
        self._check_speed()
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UserError(f"ema: expected a share from 0 to below 1 such as 0.9999, got {self.ema}; null keeps none")
        if not 0 < self.data.val_fraction < 1:
            raise UserError(f"data.val_fraction: expected a share between 0 and 1, got {self.data.val_fraction}")

    def can_recompute(self, choice: Recompute) -> bool:
        """Whether the backward pass can compute this again: a graph cannot draw a block's dropped paths twice."""
        return not (choice == "blocks" and self.speed.cuda_graph and self.model.drop_path)

    def _check_task(self) -> None:
        if self.task == "pretrain" and self.model.weights is not None:
            raise UserError("model.weights: expected a task with labels beside it, got pretrain; stages continue a run")
        if not 0 < self.optim.layer_decay <= 1:
            raise UserError(f"optim.layer_decay: expected a factor above 0, at most 1, got {self.optim.layer_decay}")
        if self.task in ("segmentation", "change") and (self.finetune.mixup or self.finetune.cutmix):
            raise UserError(f"finetune.mixup, finetune.cutmix: expected a task with labels of images, got {self.task}")

    def _check_optim(self) -> None:
        decay, betas, clip_norm = self.optim.weight_decay, self.optim.betas, self.optim.clip_norm
        _rate(**{"optim.weight_decay": decay})
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"optim.betas: expected two shares from 0 to below 1, got {list(betas)}")
        if clip_norm is not None and not clip_norm > 0:
            raise UserError(f"optim.clip_norm: expected a norm above 0, got {clip_norm}; null leaves gradients alone")
        if not 0 <= self.model.drop_path < 1:
            raise UserError(f"model.drop_path: expected a chance from 0 to below 1, got {self.model.drop_path}")

    def _check_speed(self) -> None:
        if not self.speed.cuda_graph:
            return
        if self.speed.parallel == "fsdp":
            raise UserError("speed.cuda_graph: expected speed.parallel ddp beside it, got fsdp; turn one of them off")
        if self.speed.recompute != "auto" and not self.can_recompute(self.speed.recompute):
            raise UserError(
                "speed.cuda_graph: expected no model.drop_path beside speed.recompute blocks, got "
                f"{self.model.drop_path}; choose recompute light"
            )

    def _check_stage(self, key: str, stage: StageConfig) -> None:
        for name in ("image_size", "steps", "batch_size", "accumulate", "micro_batch"):
            _at_least(1, **{f"{key}.{name}": getattr(stage, name)})
        for name in ("warmup_steps", "epochs", "warmup_epochs"):
            _at_least(0, **{f"{key}.{name}": getattr(stage, name)})
        _rate(**{f"{key}.lr": stage.lr, f"{key}.min_lr": stage.min_lr})
        if stage.schedule == "exponential" and not stage.min_lr > 0:
            raise UserError(f"{key}.min_lr: expected a rate above 0 to fall to by factors, got {stage.min_lr}")
        if not 0 < stage.mask_ratio < 1:
            raise UserError(f"{key}.mask_ratio: expected a share between 0 and 1, got {stage.mask_ratio}")
        for patch in self.model.patch_size[1:]:
            if stage.image_size % patch:
                raise UserError(
                    f"{key}.image_size: expected a multiple of the patch's {patch} pixels, got {stage.image_size}; "
                    f"{max(1, stage.image_size // patch) * patch} would do"
                )


def _rate(**values: float) -> None:
    for key, value in values.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{key}: expected a finite number of at least 0, got {value}")


def _at_least(least: int, **values: int | None) -> None:
    for key, value in values.items():
        if value is not None and value < least:
            raise UserError(f"{key}: expected at least {least}, got {value}")
