# SPDX-License-Identifier: Apache-2.0
"""The training loop: stages over one model, in one screen. `step.py` makes a step, `tasks/` says what is trained.

Everything random about data and masks is a pure function of (seed, step or epoch, sample id), so a checkpoint
needs no loader state: the number of samples consumed says where the order goes on. Steps of masks start at 1;
step 0 belongs to validation. Of several processes all run this loop and measure alike, but only the first one's
folder is the run's: the others write to a place that is thrown away.
"""

from __future__ import annotations

import warnings
from functools import partial

from spectralgpt.data.loader import EpochSampler
from spectralgpt.data.source import training_images
from spectralgpt.train import distributed
from spectralgpt.train.checkpoint import Checkpoints
from spectralgpt.train.ema import average_applied
from spectralgpt.train.folder import RunFolder
from spectralgpt.train.guard import Diverging, Guard
from spectralgpt.train.interrupt import Interrupted, StopSignals, signals_held
from spectralgpt.train.monitor import Monitor
from spectralgpt.train.optim import learning_rate
from spectralgpt.train.run import Progress, Run
from spectralgpt.train.step import OptimizerStep

_HALVINGS = 16  # steps that fp16 may lose, one after another, until its scale of the loss fits the gradients


def train(run: Run, folder: RunFolder, checkpoints: Checkpoints) -> None:
    """Runs what is left of every stage, then exports the model.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; the state is saved.
        UserError: the run diverged or the disk is full; the last good checkpoint is kept.
    """
    guard = Guard(run.config.optim.max_skipped + (_HALVINGS if run.scaler.is_enabled() else 0))
    with StopSignals() as stop:
        while not _finished(run, folder, checkpoints, guard, stop):
            warnings.warn(guard.roll_back(run, checkpoints), stacklevel=2)
    best = checkpoints.load_best(run.progress.stage) if run.task.selects and distributed.rank() == 0 else None
    run.export(folder.model, best)


def _finished(run: Run, folder: RunFolder, checkpoints: Checkpoints, guard: Guard, stop: StopSignals) -> bool:
    """Runs to the end, or to where the run has to go back."""
    with Monitor(folder, run.progress, run.config) as monitor:
        if guard.streak:
            monitor.rolled_back(run.progress, run.stage, guard.streak)
        for index in range(run.progress.stage, len(run.config.stages)):
            run.enter_stage(index)
            try:
                _train_stage(run, folder, checkpoints, monitor, guard, stop)
            except Diverging:
                return False
    return True


def _train_stage(
    run: Run, folder: RunFolder, checkpoints: Checkpoints, monitor: Monitor, guard: Guard, stop: StopSignals
) -> None:
    config, stage, progress = run.config, run.stage, run.progress
    windows, _ = run.windows[progress.stage]
    sampler = EpochSampler(len(windows), config.seed)
    with signals_held():
        batches = training_images(
            windows,
            sampler,
            stage.batch_size,
            run.first_sample,
            stage.data or config.data,
            run.device,
            distributed.rank(),
            distributed.world_size(),
            run.task.labelled,
        )
    validation = run.task.validation(run)
    optimizer_step = OptimizerStep(run)
    batches = monitor.watch(batches, run)

    while progress.stage_step < stage.steps:
        lr = learning_rate(stage, progress.stage_step)
        keys = partial(sampler.keys, run.first_sample, stage.windows_per_step)
        measured = optimizer_step(batches, lr)
        progress.advance(stage.windows_per_step)
        monitor.record(progress, stage, lr, measured, keys)

        last, stopped = progress.stage_step == stage.steps, distributed.agree(stop.requested)
        if last or stopped or progress.step % config.log_every == 0:
            monitor.flush()
            guard.look(monitor.streak)
        score, better = None, False
        if last or _is_due(progress.stage_step, config.validate_every):
            figure = folder.figures / f"step-{progress.step}.png"
            with average_applied(run.optimizer):
                result = validation.measure(run.model)
                score = result.score
                better = run.task.selects and _is_better(checkpoints, score, progress)
                monitor.validation(progress, stage, result, figure)
                validation.draw(run.model, figure, f"{config.name}, step {progress.step}")
            monitor.figure(progress, figure)
        if last or stopped or better or _is_due(progress.stage_step, config.checkpoint_every):
            monitor.sync()
            guard.look(monitor.streak)
            guard.save(run.checkpoint(), checkpoints, score, must=bool(last or stopped))
        if stopped:
            raise Interrupted(stopped)


def _is_better(checkpoints: Checkpoints, score: float, progress: Progress) -> bool:
    """Whether to keep this state for its validation; the first process, which has the checkpoints, decides."""
    return bool(
        distributed.agree(distributed.rank() == 0 and checkpoints.is_better(score, progress.step, progress.stage))
    )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
