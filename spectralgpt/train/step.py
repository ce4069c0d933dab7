# SPDX-License-Identifier: Apache-2.0
"""One optimizer step over many samples: forward and backward passes in pieces that fit, then one guarded update.

However a step's samples are cut, over batches, forward passes or processes, the gradient is the same up to
rounding: each piece's loss carries its share of the whole, before the backward pass. What a pass computes is the
task's (`tasks/base.py`). Nothing is read on the host.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from spectralgpt.errors import UserError
from spectralgpt.train import distributed
from spectralgpt.train.device import is_out_of_memory
from spectralgpt.train.ema import update_average
from spectralgpt.train.graph import Captured
from spectralgpt.train.optim import guarded_step
from spectralgpt.train.run import Run

Batch = dict[str, Tensor]


class OptimizerStep:
    """The steps of one stage."""

    def __init__(self, run: Run) -> None:
        """For the stage that `run` is in."""
        self._run = run
        self._micro_batch = run.micro_batch
        self._place = torch.tensor(0, device=run.device)  # a tensor, which a recorded graph reads anew each time
        self._objective = run.task.objective(run, self._place)
        self._captured: dict[tuple[int, ...], Captured] = {}
        self._gradients = _gradient_buffer(run) if run.config.speed.cuda_graph else None
        # Under FSDP2 even a forward pass waits for the others, so there is no trying out alone.
        self._fits = not isinstance(run.wrapped, DistributedDataParallel)

    def __call__(self, batches: Iterator[Batch], lr: float) -> Tensor:
        """Takes a step's batches and updates the weights.

        Returns:
            What the task measures and then the gradient norm, of all processes together, a vector on the device.

        Raises:
            UserError: memory runs out even for a single window, or on some of several processes in mid-stage.
        """
        run = self._run
        self._place.fill_(run.progress.step + 1)
        kept: list[Batch] = []
        while not self._fits:  # a rehearsal: nothing is exchanged, so no process waits for one that ran out
            done = self._attempt(kept, batches, exchange=False) is not None
            self._clear_gradients()
            self._fits = not distributed.agree(not done)
            if not self._fits:
                self._halve()
        while (sums := self._attempt(kept, batches, exchange=True)) is None:
            self._halve(alone=distributed.world_size() == 1 or self._gradients is not None)
        return self._update(distributed.total(sums), lr)

    def _attempt(self, kept: list[Batch], batches: Iterator[Batch], *, exchange: bool) -> Tensor | None:
        """All passes of a step, or None and everything as before where memory runs out; `kept` are batches read."""
        generators = self._run.generators()
        passes = self._run.stage.accumulate if exchange else 1
        sums = torch.zeros(self._objective.num_sums, device=self._run.device)
        try:
            for number in range(passes):
                if number == len(kept):
                    kept.append(next(batches))
                pieces = self._pieces(kept[number], number)
                for piece in pieces:
                    last = number == passes - 1 and piece is pieces[-1]
                    with self._exchange(exchange and last):
                        sums += self._pass(piece)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            sums = None  # type: ignore[assignment]
        if sums is None or not exchange:  # outside of `except`, whose traceback holds on to the tensors
            self._run.set_generators(generators)
        if sums is None:
            self._clear_gradients()
            if self._run.device.type == "cuda":
                torch.cuda.empty_cache()
        elif exchange and self._gradients is not None and distributed.world_size() > 1:
            distributed.total(self._gradients).div_(distributed.world_size())
        return sums

    def _pieces(self, batch: Batch, number: int) -> list[Batch]:
        on_device = {key: value.to(self._run.device, non_blocking=True) for key, value in batch.items()}
        on_device = self._objective.inputs(on_device, number)
        parts = {key: value.split(self._micro_batch) for key, value in on_device.items()}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]

    def _exchange(self, now: bool) -> AbstractContextManager[None]:
        """Gradients go to the other processes in the last backward pass of a step and in no other."""
        model = self._run.wrapped
        if isinstance(model, DistributedDataParallel):
            return contextlib.nullcontext() if now else model.no_sync()
        if distributed.world_size() > 1 and self._gradients is None:
            model.set_requires_gradient_sync(now)  # type: ignore[operator]
        return contextlib.nullcontext()

    def _pass(self, piece: Batch) -> Tensor:
        if self._gradients is None:
            return self._objective.forward_backward(**piece)
        shape = tuple(piece["image"].shape)
        if shape not in self._captured:
            self._captured[shape] = Captured(self._objective.forward_backward, piece, [self._gradients])
        return self._captured[shape](piece)

    def _update(self, sums: Tensor, lr: float) -> Tensor:
        run = self._run
        measured = self._objective.measured(sums)
        if run.scaler.is_enabled():
            run.scaler.unscale_(run.optimizer)
        norm = guarded_step(
            run.optimizer, measured[0], lr, run.config.optim.clip_norm, keep_buffers=self._gradients is not None
        )
        if run.scaler.is_enabled():
            run.scaler.update()
        if run.config.ema is not None:
            update_average(run.optimizer, run.config.ema)
        return torch.cat([measured, norm[None]])

    def _clear_gradients(self) -> None:
        self._run.optimizer.zero_grad(set_to_none=self._gradients is None)

    def _halve(self, *, alone: bool = True) -> None:
        """Half as many windows per forward pass from now on, or the end."""
        stage, progress = self._run.stage, self._run.progress
        where, size = f"stages.{progress.stage}", f"{stage.image_size} x {stage.image_size} pixels"
        if not alone:
            raise UserError(
                f"{where}.micro_batch: memory ran out at {self._micro_batch} windows of {size} in a process, and the "
                f"others wait for it; choose at most {max(self._micro_batch // 2, 1)}"
            )
        if self._micro_batch == 1:
            raise UserError(
                f"{where}: expected memory for one window of {size} at least, got none{self._peak()}; try "
                "--speed.recompute blocks, --precision bf16, a smaller model, or several GPUs with "
                "--speed.parallel fsdp"
            )
        self._micro_batch //= 2
        self._captured.clear()
        progress.micro_batch = self._micro_batch
        warnings.warn(
            f"out of memory{self._peak()}; {self._micro_batch} windows per forward pass from now on, more passes per "
            "step, the same arithmetic",
            stacklevel=2,
        )

    def _peak(self) -> str:
        if self._run.device.type != "cuda":
            return ""
        return f" ({torch.cuda.max_memory_allocated() / 2**20:.0f} MiB were in use)"


def _gradient_buffer(run: Run) -> Tensor:
    """One buffer behind all gradients, which are never replaced: what a recorded graph and an exchange need."""
    parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    buffer = torch.zeros(sum(parameter.numel() for parameter in parameters), device=run.device)
    for parameter, part in zip(parameters, buffer.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    return buffer
