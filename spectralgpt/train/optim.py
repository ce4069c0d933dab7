# SPDX-License-Identifier: Apache-2.0
"""AdamW as published, a learning rate that is a pure function of the step, and one guarded update.

The guard never waits for the device: the fused AdamW kernels take `found_inf`, a flag on the device, and leave
weights, moments and step count untouched where it is set. So a NaN is caught before it reaches a weight, and
the host learns of it when it next reads the losses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from spectralgpt.train.config import OptimConfig, StageConfig


def adamw(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW whose decay spares biases and norms (one dimension) but not positions and mask token, as published."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.0, betas=config.betas, fused=True)


def learning_rate(stage: StageConfig, step: int) -> float:
    """The rate of the stage's step (from 0): linear warm-up to `lr`, then half a cosine down to `min_lr`."""
    if step < stage.warmup_steps:
        return stage.lr * (step + 1) / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    return stage.min_lr + (stage.lr - stage.min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def guarded_step(
    optimizer: AdamW, loss: Tensor, lr: float, clip_norm: float | None, *, keep_buffers: bool = False
) -> Tensor:
    """One update, left out on the device where `loss` or a gradient is not finite; gradients are cleared either way.

    Args:
        optimizer: from `adamw`, with gradients in place.
        loss: 0-d, the loss these gradients belong to.
        lr: this step's learning rate.
        clip_norm: largest gradient norm, or None.
        keep_buffers: clear gradients in place, for those who hold on to their memory.

    Returns:
        The gradient norm before clipping, 0-d; not finite where the update was left out because of a gradient.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.found_inf = (~torch.isfinite(loss + norm)).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=not keep_buffers)
    return norm
