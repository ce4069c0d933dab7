# SPDX-License-Identifier: Apache-2.0
"""The training loop: stages of growing image size over one autoencoder, in one screen.

Everything random about data and masks is a pure function of (seed, step or epoch, sample id), so a checkpoint
needs no loader state: the number of samples consumed says where the order goes on. Steps of masks start at 1;
step 0 belongs to validation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import AdamW

from spectralgpt import ops
from spectralgpt.data.loader import EpochSampler, loader
from spectralgpt.errors import UserError
from spectralgpt.train.checkpoint import Checkpoints
from spectralgpt.train.folder import RunFolder
from spectralgpt.train.interrupt import Interrupted, StopSignals
from spectralgpt.train.monitor import Monitor
from spectralgpt.train.optim import adamw, guarded_step, learning_rate
from spectralgpt.train.run import Run
from spectralgpt.train.validation import Validation


def train(run: Run, folder: RunFolder, checkpoints: Checkpoints) -> None:
    """Runs what is left of every stage, then exports the model.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; the state is saved.
        UserError: the run diverged or the disk is full; the last good checkpoint is kept.
    """
    run.autoencoder.train()
    with StopSignals() as stop, Monitor(folder, run.progress, run.config) as monitor:
        for index in range(run.progress.stage, len(run.config.stages)):
            run.enter_stage(index)
            _train_stage(run, folder, checkpoints, monitor, stop)
    run.export(folder.model)


def _train_stage(run: Run, folder: RunFolder, checkpoints: Checkpoints, monitor: Monitor, stop: StopSignals) -> None:
    config, stage, progress = run.config, run.stage, run.progress
    windows, held_out = run.windows[progress.stage]
    sampler = EpochSampler(len(windows), config.seed)
    batches = loader(windows, sampler, stage.batch_size, start=progress.samples, num_workers=config.data.num_workers)
    validation = Validation(held_out, stage, config.seed, run.device)
    optimizer = adamw(run.autoencoder, config.optim)
    run.restore(optimizer)

    while progress.stage_step < stage.steps:
        lr = learning_rate(stage, progress.stage_step)
        measured = _optimizer_step(run, optimizer, batches, lr)
        progress.advance(stage.batch_size * stage.accumulate)
        monitor.record(progress, stage, lr, measured)

        last = progress.stage_step == stage.steps
        if last or stop.requested or progress.step % config.log_every == 0:
            monitor.flush()
            if monitor.skipped_in_a_row >= config.optim.max_skipped:
                raise UserError(_diverged(monitor.skipped_in_a_row, progress.step, checkpoints))
        if last or _is_due(progress.stage_step, config.validate_every):
            figure = folder.figures / f"step-{progress.step}.png"
            monitor.validation(progress, stage, validation.measure(run.autoencoder), figure)
            validation.draw(run.autoencoder, figure, f"{config.name}, step {progress.step}")
        if last or stop.requested or _is_due(progress.stage_step, config.checkpoint_every):
            monitor.sync()
            checkpoints.save(run.checkpoint(optimizer))
        if stop.requested:
            raise Interrupted(stop.requested)


def _optimizer_step(run: Run, optimizer: AdamW, batches: Iterator[dict[str, Tensor]], lr: float) -> Tensor:
    """Accumulates gradients and updates the weights; returns the loss, its two terms and the gradient norm, (4,)."""
    config, stage = run.config, run.stage
    losses = torch.zeros(3, device=run.device)
    for _ in range(stage.accumulate):
        batch = {key: value.to(run.device, non_blocking=True) for key, value in next(batches).items()}
        ids, valid = batch["sample_id"], batch["valid"]
        mask = ops.random_cube_mask(ids, valid.shape[1], stage.mask_ratio, seed=config.seed, step=run.progress.step + 1)
        with run.autocast():
            output = run.autoencoder(batch["image"], mask, valid=valid)
        (output.loss / stage.accumulate).backward()
        losses += torch.stack([output.loss.detach(), output.token_loss, output.spectral_loss]) / stage.accumulate
    norm = guarded_step(optimizer, losses[0], lr, config.optim.clip_norm)
    return torch.cat([losses, norm[None]])


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _diverged(count: int, step: int, checkpoints: Checkpoints) -> str:
    kept = (
        f"the checkpoint of step {checkpoints.steps()[-1]} is kept"
        if checkpoints.steps()
        else "no checkpoint was saved yet"
    )
    return (
        f"loss or gradient not finite in {count} steps in a row up to step {step}; {kept}; "
        "lower the learning rate (--stages.0.lr)"
    )
